"""Many engines as one: pool, load balancer, autoscaling, rewards."""
