"""Plain data and pure functions shared by every room: numpy and pydantic, nothing else."""
