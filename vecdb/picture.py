"""A collection in two dimensions: PCA, or UMAP where it is installed; as PNG, or as one HTML page with points to look at."""
