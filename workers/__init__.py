"""The cluster: the only package that imports ray. Thin: it carries out the actions that `streaming_vb` decides on."""
