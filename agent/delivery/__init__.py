"""Records on their way out: lanes keep them until they are delivered, a pump moves them, a sink is where they go."""
