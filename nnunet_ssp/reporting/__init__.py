"""Pages and figures, shared by demo, evaluation and study."""
