"""Networks. What the tasks build: timm's backbones by name, and our own where no library has them."""
