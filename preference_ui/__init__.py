"""WHO says what is better: the app for raters and its store."""
