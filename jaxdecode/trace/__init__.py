"""What happened in every step of a generation: recorded, kept in a file, looked at."""
