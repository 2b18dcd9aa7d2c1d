"""What a run will take, by arithmetic, before anything runs: parameters, memory, tokens, operations, time and cost."""
