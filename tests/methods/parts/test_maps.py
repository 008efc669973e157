import pytest
import torch

from nnunet_ssp.methods.parts.maps import at_points, decoder_maps


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_maps_are_those_that_the_output_layers_read(make_network, kind):
    network = make_network(kind, outputs=3)
    images = torch.randn(2, 1, 32, 32)
    network.decoder.deep_supervision = True
    expected = network(images)
    maps = decoder_maps(network.decoder, network.encoder(images))
    outputs = [layer(x) for layer, x in zip(network.decoder.seg_layers[::-1], maps, strict=True)]
    assert [x.shape for x in outputs] == [x.shape for x in expected]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("shape", [(8, 8), (5, 12)])
def test_points_at_pixel_centres_give_the_pixels(shape):
    x = torch.randn(2, 3, *shape)
    row = torch.arange(shape[0]).repeat_interleave(shape[1])
    column = torch.arange(shape[1]).repeat(shape[0])
    points = torch.stack([(2 * row + 1) / shape[0] - 1, (2 * column + 1) / shape[1] - 1], -1)
    found = at_points(x, points.expand(2, -1, -1))
    torch.testing.assert_close(found, x.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)


def test_points_between_pixels_follow_a_ramp():
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    x = (10 * rows + columns)[None, None]
    points = torch.rand(1, 20, 2) * 1.4 - 0.7  # inside the centres of the border's pixels
    row, column = (points[0] + 1).mul(torch.tensor([3.0, 4.0])).sub(0.5).unbind(-1)
    torch.testing.assert_close(at_points(x, points)[0, :, 0], 10 * row + column)
