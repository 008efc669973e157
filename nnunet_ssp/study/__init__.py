"""`nnunet-ssp study`: many trainings as one Snakemake workflow, and the tables and figures made of them."""
