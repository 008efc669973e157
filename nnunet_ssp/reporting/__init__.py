"""Pages and figures that demo, evaluation and study share."""
