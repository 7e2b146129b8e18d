"""What the endpoint of agents knows, apart from HTTP and engines: sessions, what may be asked, and its address."""
