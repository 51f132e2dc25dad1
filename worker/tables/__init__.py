"""Tables of URLs in any of the formats that people have, read once, as a stream of rows."""
