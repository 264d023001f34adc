"""A Darknet detector of two layers for 80 classes, for tests of what happens to public models."""

TOY_CFG = """[net]
width=64
height=64
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=32
pad=1
activation=leaky
[convolutional]
filters=255
size=1
stride=1
activation=linear
[yolo]
mask=0,1,2
anchors=10,14,23,27,37,58
classes=80
num=3
"""
