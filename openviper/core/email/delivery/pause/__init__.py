"""Stop sending for a while, in every process: the flag, where it is kept, and how processes follow it."""
