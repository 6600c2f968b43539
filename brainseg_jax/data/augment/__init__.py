"""Changes of training crops on the device, images and labels alike."""
