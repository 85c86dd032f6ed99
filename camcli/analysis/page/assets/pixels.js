"use strict";
// Heat as colour: bytes of a map to a canvas, with an opacity that follows the heat.
{
  const tables = new Map();

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  camcli.palette = (name) => {
    if (!tables.has(name)) tables.set(name, bytes(camcli.run.colours[name] ?? Object.values(camcli.run.colours)[0]));
    return tables.get(name);
  };

  // A map as numbers: 0..1, or -1..1 where it is signed.
  camcli.values = (heat, signed) => {
    const [rows, columns] = heat.size;
    const values = Float32Array.from(bytes(heat.data), (level) => (signed ? (level - 128) / 127 : level / 255));
    return { rows, columns, values };
  };

  // The value between the centres of locations, edges continued; u and v in 0..1 across the map.
  camcli.sample = ({ rows, columns, values }, u, v) => {
    const x = Math.min(Math.max(u * columns - 0.5, 0), columns - 1);
    const y = Math.min(Math.max(v * rows - 0.5, 0), rows - 1);
    const [left, top] = [Math.floor(x), Math.floor(y)];
    const [right, bottom] = [Math.min(left + 1, columns - 1), Math.min(top + 1, rows - 1)];
    const across = (row) => values[row * columns + left] * (1 - (x - left)) + values[row * columns + right] * (x - left);
    return across(top) * (1 - (y - top)) + across(bottom) * (y - top);
  };

  // Paints a map on a canvas; opacity: of the hottest place. Cold places stay clear.
  camcli.paint = (canvas, map, { signed, colours, opacity, opaque = false }) => {
    const table = camcli.palette(colours);
    const pixels = new ImageData(canvas.width, canvas.height);
    for (let y = 0, at = 0; y < canvas.height; y++) {
      for (let x = 0; x < canvas.width; x++, at += 4) {
        const value = camcli.sample(map, (x + 0.5) / canvas.width, (y + 0.5) / canvas.height);
        const level = 3 * Math.round(255 * Math.min(Math.max(signed ? (value + 1) / 2 : value, 0), 1));
        pixels.data[at] = table[level];
        pixels.data[at + 1] = table[level + 1];
        pixels.data[at + 2] = table[level + 2];
        pixels.data[at + 3] = opaque ? 255 * !Number.isNaN(value) : 255 * opacity * Math.min(Math.max((Math.abs(value) - 0.1) / 0.9, 0) * 1.3, 1);
      }
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  };
}
