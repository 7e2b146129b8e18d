"""What runs within a command's sandbox. Standard library only; no other module of ours is there."""
