"""The paper in miniature: scenes of photographs, and a text-to-image model of our own that draws them."""
