"""What is done to registries without a store: look, copy, delete, and files as artifacts.

- `api`: the verbs as a protocol, and what they take and give;
- `verbs`: the verbs done in this process;
- `names`: what a user's words mean: repositories, sources, destinations, platforms;
- `copying`: from one registry to another; `blobs`: one blob of it;
- `artifacts`: files pushed and pulled; `files`: how they come to lie in a folder.

This room and `orlop.images` know nothing of each other.
"""
