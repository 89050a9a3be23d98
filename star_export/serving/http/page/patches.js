// A view of a picture with the patches that a stage dropped dimmed, as SVG.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Draw a view.
 *
 * view: `{data, rows, columns, tokens}`: the picture, and the number of the visual token in each cell, -1 for none.
 * kept: Set of the tokens that stay; null draws the picture alone.
 * label: what it is called where it is not seen.
 */
export function drawView(view, kept, label) {
  const { rows, columns } = view;
  const svg = element("svg", { viewBox: `0 0 ${columns} ${rows}`, role: "img", "aria-label": label });
  // Cells are square, or nearly: where features were made fewer, rows and columns are rounded.
  svg.append(
    element("image", { href: view.data, width: columns, height: rows, preserveAspectRatio: "none" }),
  );
  if (kept) {
    const stays = (row, column) => kept.has(view.tokens[row]?.[column]);
    svg.append(element("path", { class: "dropped", d: dropped(rows, columns, stays) }));
    svg.append(element("path", { class: "edge", d: edges(rows, columns, stays) }));
  }
  return svg;
}

/** One square for each cell that does not stay. */
function dropped(rows, columns, stays) {
  let path = "";
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      if (!stays(row, column)) path += `M${column} ${row}h1v1h-1z`;
  return path;
}

/** The lines between cells that stay and cells that don't. */
function edges(rows, columns, stays) {
  let path = "";
  for (let row = 0; row <= rows; row++)
    for (let column = 0; column <= columns; column++) {
      const here = stays(row, column);
      if (here !== stays(row - 1, column)) path += `M${column} ${row}h1`;
      if (here !== stays(row, column - 1)) path += `M${column} ${row}v1`;
    }
  return path;
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
