"""The slice store on disk, and how training draws from it."""
