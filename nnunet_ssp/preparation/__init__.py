"""Planning, preprocessing and the slice store: `nnunet-ssp prepare`."""
