"""The embedded MuJoCo tabletop suite: scene, tasks, scripted expert, demonstrations."""
