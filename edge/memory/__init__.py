"""What a session will take, and the setup that fits."""
