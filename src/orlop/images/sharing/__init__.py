"""Images for podman, buildah and skopeo, without a copy: shares, their folders, and what keeps them."""
