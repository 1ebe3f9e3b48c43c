"""Small clusters of network namespaces on one Linux host, on which plans are measured; needs root."""
