"use strict";
// The page of `terrafine view`: Leaflet draws the tiles, this chooses them.

const TITLES = {
  map: "Map", confidence: "Confidence", product: "Coarse product",
  imagery: "Imagery", infrared: "Infrared",
};
const CLASSES = ["map", "product"];
const GROWING = 2500, STILL = 15000; // milliseconds between two questions for news
const $ = (id) => document.getElementById(id);

function make(tag, options = {}, ...children) {
  const { style, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.style, style || {});
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

async function ask(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const answer = await fetch(`${path}?${new URLSearchParams(given)}`);
  const told = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(told.error);
  return told;
}

// Tiles of one layer. After a commit every tile in view is asked for again in place, so that the
// map does not blink.
const Tiles = L.TileLayer.extend({
  initialize(name, options) {
    L.TileLayer.prototype.initialize.call(this, "", options);
    this.name = name;
    this.live = new Map();
    this.on("tileunload", (event) => this.live.delete(event.tile));
  },
  createTile(coords, done) {
    const tile = L.TileLayer.prototype.createTile.call(this, coords, done);
    this.live.set(tile, coords);
    return tile;
  },
  getTileUrl({ z, x, y }) {
    const query = new URLSearchParams();
    if (["map", "confidence"].includes(this.name)) query.set("at", view.state.snapshot);
    if (CLASSES.includes(this.name) && view.only.size) query.set("only", [...view.only].sort());
    return `tiles/${this.name}/${z}/${x}/${y}?${query}`;
  },
  refresh() {
    for (const [tile, coords] of this.live) {
      const address = this.getTileUrl(coords);
      if (tile.getAttribute("src") !== address) tile.src = address;
    }
  },
});

const view = {
  store: null, state: null, map: null, ref: null, right: "map", left: null, opacity: 100,
  at: 0.5, only: new Set(), tiles: {}, latest: null, pixel: null, timer: 0,
};

// ---- panes: the imagery below everything, then the two sides of the swipe ----

function setUpMap() {
  view.map = L.map("map", {
    zoomControl: false, fadeAnimation: false, maxZoom: view.store.native_zoom + 3, minZoom: 2,
  });
  view.map.attributionControl.setPrefix("terrafine, Leaflet");
  L.control.zoom({ position: "bottomright" }).addTo(view.map);
  L.control.scale({ imperial: false, position: "bottomleft", maxWidth: 160 }).addTo(view.map);
  [["ground", 150], ["base", 200], ["right", 210], ["left", 220], ["swipe", 300], ["marks", 450]].forEach(([name, z]) => {
    view.map.createPane(name).style.zIndex = z;
  });
  view.map.getPane("marks").style.pointerEvents = "none";
  view.map.getPane("swipe").append($("swipe"));
  view.graticule = L.layerGroup().addTo(view.map);
  view.map.on("moveend", () => { drawGraticule(); hint(); remember(); });
  view.map.on("move resize zoomend", clip);
  view.map.on("mousemove", (event) => showWhere(event.latlng.wrap()));
  view.map.on("mouseout", () => showWhere(null));
  view.map.on("click", (event) => explain(event.latlng.wrap()));
}

function put(pane, name) {
  const before = view.tiles[pane];
  if (before && before.name === name) return;
  if (before) before.remove();
  delete view.tiles[pane];
  if (!name) return;
  const tiles = new Tiles(name, {
    pane, noWrap: true, maxNativeZoom: view.store.native_zoom, maxZoom: 30, keepBuffer: 1,
  });
  tiles.on("load", () => { document.body.dataset.ready = "1"; });
  view.tiles[pane] = tiles.addTo(view.map);
}

function choose(side, name) {
  // one layer is not compared with itself: the sides change places
  if (side === "right" && name === view.left) view.left = view.right;
  view[side] = name;
  show();
}

function show() {
  const photographs = view.store.layers.filter((name) => ["imagery", "infrared"].includes(name));
  const base = photographs.find((name) => name === view.left || name === view.right);
  put("base", base || photographs[0] || null);
  put("right", view.right);
  put("left", view.left);
  for (const pane of ["left", "right"]) {
    const photograph = photographs.includes(view[pane]);
    view.map.getPane(pane).style.opacity = photograph ? 1 : view.opacity / 100;
  }
  $("swipe").hidden = !view.left;
  $("left-name").textContent = TITLES[view.left] || "";
  $("right-name").textContent = TITLES[view.right];
  for (const side of ["left", "right"]) {
    for (const button of $(side).children) {
      button.setAttribute("aria-checked", String((view[side] || "") === button.dataset.layer));
      button.hidden = side === "left" && button.dataset.layer === view.right;
    }
  }
  clip();
  drawLegend();
  hint();
  remember();
}

function clip() {
  const size = view.map.getSize();
  const corner = view.map.containerPointToLayerPoint([0, 0]);
  const x = corner.x + size.x * view.at;
  const area = (from, to) =>
    `polygon(${from}px ${corner.y}px, ${to}px ${corner.y}px, ${to}px ${corner.y + size.y}px, ${from}px ${corner.y + size.y}px)`;
  const both = Boolean(view.left);
  view.map.getPane("left").style.clipPath = both ? area(corner.x, x) : "";
  view.map.getPane("right").style.clipPath = both ? area(x, corner.x + size.x) : "";
  Object.assign($("swipe").style, { left: `${x}px`, top: `${corner.y}px`, height: `${size.y}px` });
  $("swipe").setAttribute("aria-valuenow", Math.round(view.at * 100));
}

function setUpSwipe() {
  const swipe = $("swipe");
  L.DomEvent.disableClickPropagation(swipe);
  const move = (at) => { view.at = Math.min(0.98, Math.max(0.02, at)); clip(); };
  swipe.addEventListener("pointerdown", (event) => {
    swipe.setPointerCapture(event.pointerId);
    event.preventDefault();
    event.stopPropagation();
    swipe.focus({ focusVisible: false });
  });
  swipe.addEventListener("pointermove", (event) => {
    if (swipe.hasPointerCapture(event.pointerId)) move(event.clientX / window.innerWidth);
  });
  swipe.addEventListener("pointerup", remember);
  swipe.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (step) { move(view.at + step); remember(); event.preventDefault(); }
  });
}

// ---- controls ----

function setUpControls() {
  $("name").textContent = view.store.name;
  document.title = `${view.store.name} – terrafine`;
  for (const side of ["right", "left"]) {
    const names = side === "left" ? ["", ...view.store.layers] : view.store.layers;
    $(side).replaceChildren(...names.map((name) => {
      const button = make("button", { type: "button", textContent: TITLES[name] || "Nothing" });
      button.dataset.layer = name;
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => { choose(side, name || null); });
      return button;
    }));
  }
  $("opacity").addEventListener("input", () => {
    view.opacity = Number($("opacity").value);
    $("percent").textContent = `${view.opacity} %`;
    show();
  });
  $("state").addEventListener("change", () => { view.ref = $("state").value; news(true); });
  $("follow").addEventListener("click", () => {
    if (view.latest) view.map.flyToBounds(view.latest.getBounds(), { padding: [80, 80], duration: 0.8 });
  });
  setUpSwipe();
}

function drawLegend() {
  const shown = [view.right, view.left];
  const parts = [];
  if (shown.some((name) => CLASSES.includes(name))) {
    const items = view.store.classes.map(({ code, name, color }) => {
      const out = view.only.size && !view.only.has(code);
      const button = make("button", { type: "button", className: out ? "out" : "", title: "show alone, or with others" },
        make("i", { className: "swatch", style: { background: color } }), make("span", { textContent: name }));
      button.dataset.code = code;
      button.setAttribute("aria-pressed", String(!out));
      button.addEventListener("click", () => pick(code));
      return make("li", {}, button);
    });
    const others = [["rgba(118,126,136,.28)", "no class"]];
    if (shown.includes("map") && view.state.done < view.state.planned) {
      others.push(["rgba(52,98,160,.67)", "shard done"], ["rgba(120,138,160,.24)", "shard to do"]);
    }
    for (const [color, name] of others) {
      items.push(make("li", {}, make("div", { className: "other" },
        make("i", { className: "swatch", style: { background: color } }), make("span", { textContent: name }))));
    }
    parts.push(make("h2", { textContent: `Legend “${view.store.legend}”` }), make("ul", {}, ...items));
  }
  if (shown.includes("confidence")) {
    parts.push(
      make("h2", { textContent: "Confidence of the class" }),
      make("div", { className: "ramp", style: { background: `linear-gradient(90deg, ${view.store.ramp})` } }),
      make("div", { className: "ends" }, make("span", { textContent: "0 %" }), make("span", { textContent: "100 %" })),
    );
  }
  $("legend").hidden = !parts.length;
  $("legend").replaceChildren(...parts);
}

function pick(code) {
  if (!view.only.delete(code)) view.only.add(code);
  if (view.only.size === view.store.classes.length) view.only.clear();
  Object.values(view.tiles).forEach((tiles) => tiles.refresh());
  drawLegend();
}

function hint() {
  const zoom = view.map.getZoom();
  const limits = { ...view.store.fine_from, ...view.state.fine_from };
  const coarse = [view.right, view.left].filter((name) => name && zoom < (limits[name] || 0));
  const done = view.state.done || view.state.states.length;
  $("hint").hidden = Boolean(done) && !coarse.length;
  $("hint").textContent = done
    ? `Zoom in to see the ${coarse.map((name) => TITLES[name].toLowerCase()).join(" and the ")}`
    : "Nothing is mapped yet";
}

// ---- what is shown, and news of it ----

async function news(move = false) {
  clearTimeout(view.timer);
  try {
    const before = view.state;
    const asked = view.ref;
    const state = await ask("api/state", { ref: asked });
    if (asked !== view.ref) return;
    view.state = state;
    view.ref = state.ref;
    if (!before || before.snapshot !== state.snapshot) {
      Object.values(view.tiles).forEach((tiles) => tiles.refresh());
      if (before) markLatest();
      if (before && move) forget();
    }
    drawAbout();
    if (before) { drawLegend(); hint(); remember(); }
    document.body.dataset.snapshot = state.snapshot;
    document.body.dataset.done = state.done;
  } catch (error) {
    $("progress").textContent = `No news: ${error.message}`;
    $("growing").hidden = false;
  }
  const growing = view.state && view.state.done < view.state.planned;
  view.timer = setTimeout(news, growing ? GROWING : STILL);
}

function drawAbout() {
  const { states, state } = { states: view.state.states, state: view.state };
  const group = (kind, label) => {
    const found = states.filter((known) => known.kind === kind);
    return found.length ? make("optgroup", { label }, ...found.map(({ ref, current }) =>
      make("option", { value: ref, textContent: current ? `${ref} (current)` : ref }))) : null;
  };
  const groups = [group("release", "Releases"), group("run", "Runs")].filter(Boolean);
  const told = JSON.stringify(states);
  if ($("state").dataset.told !== told) {
    $("state").replaceChildren(...groups);
    $("state").dataset.told = told;
  }
  $("state").value = state.ref;
  const short = (digest) => (digest ? digest.slice(0, 12) : "–");
  facts($("facts"), [
    ["written", moment(state.last_commit)],
    ["model", short(state.model), state.model],
    ["run", state.run],
    ["scenes", state.scenes.toLocaleString("en")],
    ["based on", state.base],
    ["shards", state.done === state.planned && state.planned ? state.planned.toLocaleString("en") : null],
  ]);
  const growing = state.done < state.planned;
  $("growing").hidden = !growing;
  const share = state.planned ? (100 * state.done) / state.planned : 0;
  $("growing").querySelector("i").style.width = `${share}%`;
  $("growing").querySelector(".bar").setAttribute("aria-valuenow", Math.round(share));
  const speed = state.per_minute;
  const left = speed ? `\n${speed.toPrecision(3)} shards a minute, about ${span((state.planned - state.done) / speed)} left` : "";
  $("progress").textContent =
    `${state.done.toLocaleString("en")} of ${state.planned.toLocaleString("en")} shards (${share.toFixed(share < 10 ? 1 : 0)} %)${left}`;
  $("follow").hidden = !state.latest.length;
  if (state.latest.length && !view.latest) markLatest();
  if (!growing && view.latest) { view.latest.remove(); view.latest = null; }
}

function markLatest() {
  if (view.latest) view.latest.remove();
  view.latest = view.state.latest.length
    ? L.geoJSON(view.state.latest, {
      pane: "marks", interactive: false, style: { color: "#ff8c00", weight: 2, fill: false },
    }).addTo(view.map)
    : null;
}

function facts(list, rows) {
  list.replaceChildren(...rows.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([name, value, title]) => [make("dt", { textContent: name }),
      make("dd", { textContent: value, title: title || "" })]));
}

const moment = (iso) => new Date(iso).toLocaleString("sv").slice(0, 16);
const span = (minutes) => (minutes < 90 ? `${Math.max(1, Math.round(minutes))} min` : `${(minutes / 60).toFixed(1)} h`);

// ---- one pixel ----

async function explain({ lat, lng }) {
  forget();
  let told;
  try {
    told = await ask("api/pixel", { at: view.state.snapshot, lon: lng, lat });
  } catch (error) {
    told = { class: "no answer", error: error.message };
  }
  const outline = told && told.outline;
  view.pixel = L.layerGroup([
    ...(outline ? [L.geoJSON(outline, { pane: "marks", interactive: false, style: { color: "#111", weight: 3, fill: false } }),
      L.geoJSON(outline, { pane: "marks", interactive: false, style: { color: "#fff", weight: 1, fill: false } })] : []),
    L.popup({ minWidth: 230, maxWidth: 330, autoPanPaddingTopLeft: [290, 20], autoPanPaddingBottomRight: [250, 20] })
      .setLatLng([lat, lng]).setContent(pixelCard(told)).on("remove", forget),
  ]).addTo(view.map);
}

function pixelCard(told) {
  if (!told) return make("div", { className: "pixel" }, make("h3", { textContent: "outside the map" }));
  const list = make("dl");
  facts(list, [
    ["confidence", told.confidence === null ? null : `${told.confidence} %`],
    ["scene", told.scene],
    ["model", told.model && told.model.slice(0, 12), told.model],
    ["release", (told.releases || []).join(", ")],
    ["run", told.run],
    ["mapped", told.written_at && moment(told.written_at)],
    ["product", told.product && told.product.class],
    ["imagery", told.values && Object.entries(told.values).map((pair) => pair.join(" ")).join(", ")],
    ["error", told.error],
  ]);
  const card = make("div", { className: "pixel" },
    make("h3", {}, told.color ? make("i", { className: "swatch", style: { background: told.color } }) : null,
      make("span", { textContent: told.class })),
    Number.isInteger(told.confidence)
      ? make("div", { className: "sure" }, make("i", { style: { width: `${told.confidence}%` } })) : null,
    list,
    told.crs ? make("p", { className: "quiet", textContent:
      `${told.crs}  x ${told.x.toFixed(1)}  y ${told.y.toFixed(1)}  row ${told.row}  column ${told.col}` }) : null);
  return card;
}

function forget() {
  const pixel = view.pixel;
  view.pixel = null;
  if (pixel) pixel.remove();
}

function showWhere(at) {
  $("where").textContent = at
    ? `${Math.abs(at.lat).toFixed(5)}° ${at.lat < 0 ? "S" : "N"}  ${Math.abs(at.lng).toFixed(5)}° ${at.lng < 0 ? "W" : "E"}` : "";
}

// ---- degrees around the map, since no other map lies below it ----

const STEPS = [30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005];

function drawGraticule() {
  const bounds = view.map.getBounds();
  const wide = bounds.getEast() - bounds.getWest();
  const step = STEPS.find((degrees) => wide / degrees > 5) || STEPS.at(-1);
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  const line = { pane: "ground", color: getComputedStyle(document.body).color, opacity: 0.16, weight: 1, interactive: false };
  const label = (at, text, anchor) => L.marker(at, {
    interactive: false, keyboard: false, pane: "ground",
    icon: L.divIcon({ className: "degrees", html: text, iconSize: null, iconAnchor: anchor }),
  });
  const [south, north] = [Math.max(bounds.getSouth(), -85), Math.min(bounds.getNorth(), 85)];
  const foot = view.map.containerPointToLatLng([0, view.map.getSize().y - 48]);
  view.graticule.clearLayers();
  for (let i = Math.ceil(bounds.getWest() / step); i * step < bounds.getEast(); i += 1) {
    const lon = i * step;
    view.graticule.addLayer(L.polyline([[south, lon], [north, lon]], line));
    view.graticule.addLayer(label([foot.lat, lon], `${Math.abs(lon).toFixed(digits)}° ${lon < 0 ? "W" : "E"}`, [-4, 0]));
  }
  const side = view.map.containerPointToLatLng([290, 0]);
  for (let i = Math.ceil(south / step); i * step < north; i += 1) {
    const lat = i * step;
    view.graticule.addLayer(L.polyline([[lat, bounds.getWest()], [lat, bounds.getEast()]], line));
    view.graticule.addLayer(label([lat, side.lng], `${Math.abs(lat).toFixed(digits)}° ${lat < 0 ? "S" : "N"}`, [0, 16]));
  }
}

// ---- the address holds what is shown, so that it can be sent to someone ----

function remember() {
  if (!view.map || !view.ref) return;
  const centre = view.map.getCenter();
  const query = new URLSearchParams({
    at: `${view.map.getZoom()}/${centre.lat.toFixed(5)}/${centre.lng.toFixed(5)}`, map: view.ref, show: view.right,
    ...(view.left ? { left: view.left, swipe: view.at.toFixed(2) } : {}),
    ...(view.opacity < 100 ? { opacity: view.opacity } : {}),
  });
  history.replaceState(null, "", `#${decodeURIComponent(query)}`);
}

function recall() {
  const query = new URLSearchParams(location.hash.slice(1));
  const known = (name) => (view.store.layers.includes(name) ? name : null);
  view.ref = query.get("map");
  view.right = known(query.get("show")) || "map";
  view.left = known(query.get("left"));
  view.at = Math.min(0.98, Math.max(0.02, Number(query.get("swipe")) || 0.5));
  view.opacity = query.has("opacity") ? Number(query.get("opacity")) || 0 : 100;
  $("opacity").value = view.opacity;
  $("percent").textContent = `${view.opacity} %`;
  const [zoom, lat, lng] = (query.get("at") || "").split("/").map(Number);
  return Number.isFinite(lng) ? { zoom, centre: [lat, lng] } : null;
}

async function start() {
  view.store = await ask("api/store");
  setUpMap();
  setUpControls();
  const place = recall();
  await news();
  if (!view.state && view.ref) { view.ref = null; await news(); }
  if (place) view.map.setView(place.centre, place.zoom);
  else if (view.state.bounds) {
    const [west, south, east, north] = view.state.bounds;
    view.map.fitBounds([[south, west], [north, east]], { paddingTopLeft: [290, 20], paddingBottomRight: [262, 40] });
  } else view.map.setView([30, 105], 4);
  show();
}

start().catch((error) => {
  document.body.dataset.error = error.message;
  $("hint").hidden = false;
  $("hint").textContent = error.message;
});
