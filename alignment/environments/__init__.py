"""What answers a policy, turn by turn: the protocol, what is shipped, and how episodes are played."""
