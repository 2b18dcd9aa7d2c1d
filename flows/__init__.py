"""HOW it runs: Prefect flows, Ray, the command line."""
