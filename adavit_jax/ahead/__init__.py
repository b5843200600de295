"""What training steps take on devices that are not here, by compiling them."""
