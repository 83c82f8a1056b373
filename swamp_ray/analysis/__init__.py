"""What a finished run's networks are like: lines and planes between them, curvature, how many particles it takes."""
