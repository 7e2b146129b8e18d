"""Sessions of the endpoint of agents, requests that it takes, and its address: apart from HTTP and engines."""
