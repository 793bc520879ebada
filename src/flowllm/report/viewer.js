// Draws each <canvas data-scenes> of the gallery: atoms as spheres with their symbols, bonds, cells.
// Drag or use the arrow keys to rotate; the button of a crystal changes between one cell and 2 × 2 × 2.
// The script uses the canvas API only and fetches nothing.
"use strict";
for (const canvas of document.querySelectorAll("canvas[data-scenes]")) {
  const scenes = JSON.parse(canvas.dataset.scenes);
  const context = canvas.getContext("2d");
  let scene = scenes[0];
  let rotation = scene.view; // row by row: to the right, up, towards the reader

  function multiply(a, b) {
    const out = [];
    for (let i = 0; i < 3; i++)
      for (let j = 0; j < 3; j++)
        out.push(a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j]);
    return out;
  }

  function rotate(x, y) {
    const [cx, sx, cy, sy] = [Math.cos(x), Math.sin(x), Math.cos(y), Math.sin(y)];
    const aboutX = [1, 0, 0, 0, cx, -sx, 0, sx, cx];
    const aboutY = [cy, 0, sy, 0, 1, 0, -sy, 0, cy];
    rotation = multiply(multiply(aboutX, aboutY), rotation);
    draw();
  }

  function drawLine({ line, color, width, rim }) {
    context.lineCap = "butt";
    for (const [style, thickness] of rim ? [[rim, width + 1.4], [color, width]] : [[color, width]]) {
      context.strokeStyle = style;
      context.lineWidth = thickness;
      context.beginPath();
      context.moveTo(line[0][0], line[0][1]);
      context.lineTo(line[1][0], line[1][1]);
      context.stroke();
    }
  }

  function drawAtom([x, y], [symbol, color, radius], scale) {
    const r = Math.max(radius * scale, 3);
    const shine = context.createRadialGradient(x - r / 3, y - r / 3, r / 8, x, y, r);
    shine.addColorStop(0, "#ffffff");
    shine.addColorStop(0.4, color);
    shine.addColorStop(1, color);
    context.fillStyle = shine;
    context.strokeStyle = "#333333";
    context.lineWidth = 0.8;
    context.beginPath();
    context.arc(x, y, r, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
    if (r < 8) return; // the legend has the symbols too
    context.font = `600 ${Math.max(9, Math.min(r, 14))}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 2.5;
    context.strokeStyle = "#ffffff";
    context.strokeText(symbol, x, y);
    context.fillStyle = "#111111";
    context.fillText(symbol, x, y);
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const side = canvas.clientWidth;
    canvas.width = canvas.height = side * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const scale = (0.46 * side) / (scene.size + 0.5);
    const place = (x, y, z) => [
      side / 2 + scale * (rotation[0] * x + rotation[1] * y + rotation[2] * z),
      side / 2 - scale * (rotation[3] * x + rotation[4] * y + rotation[5] * z),
      rotation[6] * x + rotation[7] * y + rotation[8] * z,
    ];
    const middle = (a, b) => a.map((value, i) => (value + b[i]) / 2);
    const shapes = [];
    for (const edge of scene.edges) {
      const line = [place(...edge.slice(0, 3)), place(...edge.slice(3))];
      shapes.push({ depth: Math.min(line[0][2], line[1][2]) - 1e-3, line, color: "#8a8a8a", width: 1 });
    }
    const atoms = scene.atoms.map(([x, y, z]) => place(x, y, z));
    for (const bond of scene.bonds)
      for (const [from, to] of [bond, [bond[1], bond[0]]]) {
        const [, color, radius] = scene.kinds[scene.atoms[from][3]];
        const end = middle(atoms[from], atoms[to]);
        const length = Math.hypot(...[0, 1, 2].map((i) => (end[i] - atoms[from][i]) / (i < 2 ? scale : 1)));
        // From the surface of the atom, so that a bond towards the reader does not cross it.
        const share = Math.min((0.9 * radius) / (length || 1), 1);
        const line = [atoms[from].map((value, i) => value + share * (end[i] - value)), end];
        shapes.push({ depth: middle(...line)[2] - 1e-3, line, color, width: 0.2 * scale, rim: "#666666" });
      }
    scene.atoms.forEach((atom, i) => shapes.push({ depth: atoms[i][2], at: atoms[i], kind: atom[3] }));
    shapes.sort((a, b) => a.depth - b.depth);
    for (const shape of shapes)
      if (shape.line) drawLine(shape);
      else drawAtom(shape.at, scene.kinds[shape.kind], scale);
  }

  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    last = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    rotate((event.clientY - last[1]) / 100, (event.clientX - last[0]) / 100);
    last = [event.clientX, event.clientY];
  });
  canvas.addEventListener("pointerup", () => (last = null));
  canvas.addEventListener("pointercancel", () => (last = null));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-0.15, 0], ArrowDown: [0.15, 0], ArrowLeft: [0, -0.15], ArrowRight: [0, 0.15] };
    if (!(event.key in step)) return;
    rotate(...step[event.key]);
    event.preventDefault();
  });
  const button = canvas.parentElement.querySelector("button");
  button?.addEventListener("click", () => {
    scene = scene === scenes[0] ? scenes[1] : scenes[0];
    button.setAttribute("aria-pressed", scene === scenes[1]);
    draw();
  });
  new ResizeObserver(draw).observe(canvas); // also when it is unfolded
}
