"use strict";
// Panels that show one place in several ways: they move together, and the pixel under the pointer
// is named in each of them. Classes are read back from the pictures' own colours.
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const byId = (id) => document.getElementById(id);
  const MAX_CELL = 48; // largest size of a map pixel on the screen
  const DIMMED = 20; // opacity (of 255) of what a filter hides

  const view = { x: data.width / 2, y: data.height / 2, zoom: 1 };
  const filter = { classes: new Set(), differing: false };
  let pointer = null; // image pixel under the pointer, or null
  let drawing = false;

  const key = (r, g, b) => (r << 16) | (g << 8) | b;
  const palettes = {
    classes: new Map(data.classes.map((c) => [key(...c.rgb), c.code])),
    confidence: new Map(data.confidence.map((rgb, percent) => [key(...rgb), percent])),
  };
  const names = new Map(data.classes.map((c) => [c.code, c.name]));

  function pixelsOf(image) {
    const canvas = document.createElement("canvas");
    canvas.width = data.width;
    canvas.height = data.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return { canvas, context };
  }

  // One value per pixel, -1 where the picture is transparent.
  function valuesOf(source, palette) {
    const rgba = source.context.getImageData(0, 0, data.width, data.height).data;
    const values = new Int16Array(data.width * data.height).fill(-1);
    for (let i = 0; i < values.length; i++) {
      const at = 4 * i;
      if (rgba[at + 3] === 255) {
        values[i] = palette.get(key(rgba[at], rgba[at + 1], rgba[at + 2])) ?? -1;
      }
    }
    return values;
  }

  class Panel {
    constructor({ key: name, kind }) {
      this.kind = kind;
      this.name = name;
      this.figure = byId("panel-" + name);
      this.canvas = this.figure.querySelector("canvas");
      this.value = this.figure.querySelector(".value");
      this.layers = [...this.figure.querySelectorAll("img")].map(pixelsOf);
      this.values = kind === "image" ? null : valuesOf(this.layers[0], palettes[kind]);
      this.shown = this.layers[0].canvas;
      listen(this);
    }

    // Screen pixels per image pixel.
    get scale() {
      const fit = Math.min(
        this.canvas.clientWidth / data.width,
        this.canvas.clientHeight / data.height
      );
      return fit * view.zoom;
    }

    toImage(event) {
      const box = this.canvas.getBoundingClientRect();
      return {
        x: view.x + (event.clientX - box.left - box.width / 2) / this.scale,
        y: view.y + (event.clientY - box.top - box.height / 2) / this.scale,
      };
    }

    draw() {
      const ratio = window.devicePixelRatio || 1;
      const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      const context = this.canvas.getContext("2d");
      const scale = this.scale;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      // Blended colours would be classes that nobody mapped.
      context.imageSmoothingEnabled = this.kind !== "classes" && scale * ratio < 1;
      const [left, top] = [width / 2 - view.x * scale, height / 2 - view.y * scale];
      context.drawImage(this.shown, left, top, data.width * scale, data.height * scale);
      this.drawZooms(context, left, top, scale);
      if (this.name === "image") drawScaleBar(context, width, height, scale);
      if (pointer) this.drawPointer(context, left, top, scale);
      this.value.textContent = pointer ? this.valueAt(pointer) : "";
    }

    drawZooms(context, left, top, scale) {
      context.font = "600 11px system-ui, sans-serif";
      data.zooms.forEach(([row, col, rows, cols], index) => {
        const box = [left + col * scale, top + row * scale, cols * scale, rows * scale];
        context.lineWidth = 3;
        context.strokeStyle = "rgba(0, 0, 0, 0.55)";
        context.strokeRect(...box);
        context.lineWidth = 1.5;
        context.strokeStyle = "#fff";
        context.strokeRect(...box);
        context.lineWidth = 3;
        context.strokeStyle = "rgba(0, 0, 0, 0.7)";
        context.strokeText(index + 1, box[0] + 4, box[1] + 13);
        context.fillStyle = "#fff";
        context.fillText(index + 1, box[0] + 4, box[1] + 13);
      });
    }

    drawPointer(context, left, top, scale) {
      const size = Math.max(scale, 3);
      const x = left + (Math.floor(pointer.x) + 0.5) * scale;
      const y = top + (Math.floor(pointer.y) + 0.5) * scale;
      for (const [color, grown] of [["#000", 2], ["#fff", 0.5]]) {
        context.lineWidth = 1.5;
        context.strokeStyle = color;
        const side = size + 2 * grown;
        context.strokeRect(x - side / 2, y - side / 2, side, side);
      }
    }

    valueAt({ x, y }) {
      if (!this.values) return "";
      const value = this.values[Math.floor(y) * data.width + Math.floor(x)];
      if (value < 0) return this.kind === "confidence" ? "none" : "no class";
      return this.kind === "confidence" ? value + " %" : names.get(value);
    }

    applyFilter(differs) {
      if (this.kind !== "classes") return;
      if (!filter.classes.size && !differs) {
        this.shown = this.layers[0].canvas;
        return;
      }
      const pixels = this.layers[0].context.getImageData(0, 0, data.width, data.height);
      for (let i = 0; i < this.values.length; i++) {
        const chosen = !filter.classes.size || filter.classes.has(this.values[i]);
        if (this.values[i] >= 0 && !(chosen && (!differs || differs[i]))) {
          pixels.data[4 * i + 3] = DIMMED;
        }
      }
      const target = pixelsOf(this.layers[0].canvas);
      target.context.putImageData(pixels, 0, 0);
      this.shown = target.canvas;
    }
  }

  function drawScaleBar(context, width, height, scale) {
    const metres = data.metres / scale; // per screen pixel
    const longest = (metres * width) / 3;
    const decade = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].find((digit) => digit * decade <= longest) * decade;
    const label = length >= 1000 ? length / 1000 + " km" : length + " m";
    const bar = length / metres;
    context.fillStyle = "rgba(255, 255, 255, 0.85)";
    context.fillRect(8, height - 30, bar + 16, 24);
    context.fillStyle = "#1d2733";
    context.fillRect(16, height - 13, bar, 3);
    context.font = "11px system-ui, sans-serif";
    context.fillText(label, 16, height - 17);
  }

  function schedule() {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      panels.forEach((panel) => panel.draw());
      byId("coordinates").textContent = pointer ? describe(pointer) : byId("coordinates").title;
    });
  }

  function describe({ x, y }) {
    const decimals = data.dx < 0.1 ? 5 : data.dx < 10 ? 1 : 0;
    const east = (data.left + x * data.dx).toFixed(decimals);
    const north = (data.top - y * data.dy).toFixed(decimals);
    const [row, col] = [Math.floor(y) * data.step, Math.floor(x) * data.step];
    return `x ${east}  y ${north}  ${data.unit} (${data.crs}) · row ${row}, column ${col}`;
  }

  // Changes the zoom and keeps the image pixel `fixed` where it is on the screen.
  function zoomTo(zoom, fixed = { x: view.x, y: view.y }) {
    const fit = panels[0].scale / view.zoom;
    const next = Math.min(Math.max(zoom, 1), Math.max(MAX_CELL / fit, 1));
    const kept = view.zoom / next;
    view.x = fixed.x + (view.x - fixed.x) * kept;
    view.y = fixed.y + (view.y - fixed.y) * kept;
    view.zoom = next;
    moveTo(view.x, view.y);
  }

  function moveTo(x, y) {
    const half = 0.5 / view.zoom; // at the whole scene the picture stays where it is
    const clamp = (v, size) => Math.min(Math.max(v, size * half), size * (1 - half));
    view.x = clamp(x, data.width);
    view.y = clamp(y, data.height);
    schedule();
  }

  const inside = (p) => p.x >= 0 && p.y >= 0 && p.x < data.width && p.y < data.height;

  let lastScroll = -Infinity;
  addEventListener("scroll", () => (lastScroll = performance.now()), { passive: true });

  function listen(panel) {
    const canvas = panel.canvas;
    let dragged = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      dragged = event;
    });
    canvas.addEventListener("pointerup", () => (dragged = null));
    canvas.addEventListener("pointercancel", () => (dragged = null));
    canvas.addEventListener("pointermove", (event) => {
      if (dragged) {
        const scale = panel.scale;
        const moved = [event.clientX - dragged.clientX, event.clientY - dragged.clientY];
        moveTo(view.x - moved[0] / scale, view.y - moved[1] / scale);
        dragged = event;
      }
      const under = panel.toImage(event);
      pointer = inside(under) ? under : null;
      schedule();
    });
    canvas.addEventListener("pointerleave", () => {
      pointer = null;
      schedule();
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        // A reader who scrolls down the page and passes over a panel must not be caught in it,
        // nor one who has zoomed out to the whole scene and goes on.
        const passing = performance.now() - lastScroll < 250 && document.activeElement !== canvas;
        if (passing || (view.zoom === 1 && event.deltaY > 0)) return;
        event.preventDefault();
        zoomTo(view.zoom * Math.exp(-event.deltaY * 0.0016), panel.toImage(event));
      },
      { passive: false }
    );
    canvas.addEventListener("dblclick", (event) => zoomTo(view.zoom * 2, panel.toImage(event)));
    canvas.addEventListener("keydown", (event) => {
      const stride = 0.1 * Math.min(data.width, data.height) / view.zoom;
      const actions = {
        ArrowLeft: () => moveTo(view.x - stride, view.y),
        ArrowRight: () => moveTo(view.x + stride, view.y),
        ArrowUp: () => moveTo(view.x, view.y - stride),
        ArrowDown: () => moveTo(view.x, view.y + stride),
        "+": () => zoomTo(view.zoom * 1.5),
        "=": () => zoomTo(view.zoom * 1.5),
        "-": () => zoomTo(view.zoom / 1.5),
        0: () => zoomTo(1),
      };
      if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      actions[event.key]();
      pointer = { x: view.x, y: view.y }; // the keyboard's pointer is the middle
    });
  }

  function refilter() {
    const find = (name) => panels.find((panel) => panel.name === name);
    const [map, product] = [find("map"), find("product")];
    let differs = null;
    if (filter.differing && map && product) {
      differs = map.values.map((v, i) => v >= 0 && product.values[i] >= 0 && v !== product.values[i]);
    }
    panels.forEach((panel) => panel.applyFilter(differs));
    schedule();
  }

  function connect() {
    byId("zoom-in").onclick = () => zoomTo(view.zoom * 1.5);
    byId("zoom-out").onclick = () => zoomTo(view.zoom / 1.5);
    byId("zoom-fit").onclick = () => zoomTo(1);
    document.querySelectorAll("[data-layer]").forEach((button) => {
      button.onclick = () => {
        const panel = panels[0];
        panel.shown = panel.layers[Number(button.dataset.layer)].canvas;
        document.querySelectorAll("[data-layer]").forEach((other) => {
          other.setAttribute("aria-pressed", String(other === button));
        });
        schedule();
      };
    });
    const differing = byId("only-differing");
    if (differing) {
      differing.onchange = () => {
        filter.differing = differing.checked;
        refilter();
      };
    }
    document.querySelectorAll("[data-code]").forEach((button) => {
      button.onclick = () => {
        const code = Number(button.dataset.code);
        if (!filter.classes.delete(code)) filter.classes.add(code);
        button.setAttribute("aria-pressed", String(filter.classes.has(code)));
        refilter();
      };
    });
    document.querySelectorAll("[data-goto]").forEach((button) => {
      button.onclick = () => {
        const [row, col, rows, cols] = data.zooms[Number(button.dataset.goto)];
        zoomTo(0.9 * Math.min(data.width / cols, data.height / rows));
        moveTo(col + cols / 2, row + rows / 2);
        byId("panels").scrollIntoView({ behavior: "smooth" });
      };
    });
    new ResizeObserver(schedule).observe(panels[0].canvas);
  }

  let panels = [];
  addEventListener("error", (event) => (document.body.dataset.error = event.message));
  Promise.all([...document.querySelectorAll(".panel img")].map((image) => image.decode()))
    .then(() => {
      document.body.classList.add("live");
      panels = data.panels.map((info) => new Panel(info));
      connect();
      schedule();
      document.body.dataset.panels = String(panels.length);
      document.body.dataset.ready = "1";
    })
    .catch((error) => (document.body.dataset.error = String(error)));
})();
