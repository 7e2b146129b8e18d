"""How environments are written: by name, by the shape of other systems, as functions of an endpoint."""
