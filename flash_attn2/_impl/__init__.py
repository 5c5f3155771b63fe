"""What lies between the public functions and the native modules. Nothing here is public."""
