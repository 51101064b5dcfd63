"""The catalog that product search uses: photos of products as short codes on the disk, searched by their features."""
