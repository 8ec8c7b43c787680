"""Device meshes as values, and the ranks that live on them."""
