// Draws each <canvas data-scene> of the gallery: atoms as spheres with their symbols, bonds, cell.
// Drag or use the arrow keys to rotate. The script uses the canvas API only and fetches nothing.
"use strict";
for (const canvas of document.querySelectorAll("canvas[data-scene]")) {
  const scene = JSON.parse(canvas.dataset.scene);
  const context = canvas.getContext("2d");
  let rotation = [1, 0, 0, 0, 0, 1, 0, -1, 0]; // row by row; the third axis points up

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

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const side = canvas.clientWidth;
    canvas.width = canvas.height = side * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, side, side);
    const scale = (0.44 * side) / (scene.size + 0.6);
    const place = (x, y, z) => [
      side / 2 + scale * (rotation[0] * x + rotation[1] * y + rotation[2] * z),
      side / 2 - scale * (rotation[3] * x + rotation[4] * y + rotation[5] * z),
      rotation[6] * x + rotation[7] * y + rotation[8] * z,
    ];
    const shapes = [];
    for (const edge of scene.edges) {
      const [a, b] = [place(...edge.slice(0, 3)), place(...edge.slice(3))];
      shapes.push({ depth: Math.min(a[2], b[2]) - 1e-3, line: [a, b], color: "#8a8a8a", width: 1 });
    }
    const atoms = scene.atoms.map(([x, y, z]) => place(x, y, z));
    for (const [i, j] of scene.bonds) {
      const [a, b] = [atoms[i], atoms[j]];
      const depth = (a[2] + b[2]) / 2 - 1e-3;
      shapes.push({ depth, line: [a, b], color: "#b0b0b0", width: 0.16 * scale });
    }
    scene.atoms.forEach((atom, i) => shapes.push({ depth: atoms[i][2], at: atoms[i], kind: atom[3] }));
    shapes.sort((a, b) => a.depth - b.depth);
    for (const shape of shapes) {
      if (shape.line) {
        context.strokeStyle = shape.color;
        context.lineWidth = shape.width;
        context.beginPath();
        context.moveTo(shape.line[0][0], shape.line[0][1]);
        context.lineTo(shape.line[1][0], shape.line[1][1]);
        context.stroke();
        continue;
      }
      const [symbol, color, radius] = scene.kinds[shape.kind];
      const [x, y] = shape.at;
      const r = Math.max(radius * scale, 7);
      const shine = context.createRadialGradient(x - r / 3, y - r / 3, r / 8, x, y, r);
      shine.addColorStop(0, "#ffffff");
      shine.addColorStop(0.35, color);
      shine.addColorStop(1, color);
      context.fillStyle = shine;
      context.strokeStyle = "#333333";
      context.lineWidth = 0.8;
      context.beginPath();
      context.arc(x, y, r, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
      context.font = `600 ${Math.max(9, Math.min(r, 14))}px sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.lineWidth = 2.5;
      context.strokeStyle = "#ffffff";
      context.strokeText(symbol, x, y);
      context.fillStyle = "#111111";
      context.fillText(symbol, x, y);
    }
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
  window.addEventListener("resize", draw);
  rotate(0, 0.4);
  rotate(0.25, 0);
}
