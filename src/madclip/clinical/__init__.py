"""What a reading room can use: heat maps in the geometry of the scan, and objects that an archive keeps."""
