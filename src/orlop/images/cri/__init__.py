"""The rules of images as Kubernetes sees them: what names mean, who their user is, what the disk holds."""
