"""From a new cine to masks, volumes and a page: `nnunet-ssp predict`."""
