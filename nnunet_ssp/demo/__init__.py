"""The main job from nothing to a report: `nnunet-ssp demo`."""
