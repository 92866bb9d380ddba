"""From texts and voices to speech."""
