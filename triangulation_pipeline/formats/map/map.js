"use strict";
// The map of fixes. Everything it shows stands in the element #data; texts of files are only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const fixes = data.fixes, count = fixes.id.length;
  const BLUE = "#0072b2", VERMILION = "#d55e00", GREEN = "#00785a", BLACK = "#1d2733";
  const MOST_REGIONS = 1500; // drawn at a time
  const SMALLEST_PX = 3; // a region below this size is a dot
  const DOT_PX = 10; // one below this size hides behind the dot of its fix
  const HIT_PX = 14;
  const DEGREES = 1e-6; // the unit of the corners of regions

  // Web Mercator, 0 to 1. It has no poles.
  const EDGE = 85.05;
  const mercatorX = lon => (lon + 180) / 360;
  const mercatorY = lat => {
    const sin = Math.sin(Math.max(-EDGE, Math.min(EDGE, lat)) * Math.PI / 180);
    return 0.5 - Math.log((1 + sin) / (1 - sin)) / (4 * Math.PI);
  };
  const projected = (lon, lat) => ({ x: Float64Array.from(lon, mercatorX), y: Float64Array.from(lat, mercatorY) });

  const place = projected(fixes.lon, fixes.lat);
  const truth = projected(fixes.true_lon, fixes.true_lat); // of use where it is known
  const sites = projected(data.receivers.map(r => r.lon), data.receivers.map(r => r.lat));
  const others = fixes.others.map(list => list.map(([lon, lat, p]) => ({ lon, lat, p, x: mercatorX(lon), y: mercatorY(lat) })));

  // The region of a fix at a level: rings of corners, as whole numbers, each the step from the one before.
  function rings(level, i) {
    const stored = data.regions[level][i];
    return stored ? stored.map(steps => {
      const corner = new Float64Array(steps.length);
      let lon = 0, lat = 0;
      for (let k = 0; k < steps.length; k += 2) {
        lon += steps[k]; lat += steps[k + 1];
        corner[k] = mercatorX(lon * DEGREES); corner[k + 1] = mercatorY(lat * DEGREES);
      }
      return corner;
    }) : [ellipse(level, i)];
  }
  function ellipse(level, i) {
    const [major, minor] = fixes.axes[level][i], turn = fixes.turn[i] * Math.PI / 180;
    const perMetre = 1 / (2 * Math.PI * 6371008.8 * Math.cos(fixes.lat[i] * Math.PI / 180));
    const corner = new Float64Array(2 * 49);
    for (let k = 0; k < 49; k++) {
      const a = major * Math.cos(k * Math.PI / 24), b = minor * Math.sin(k * Math.PI / 24);
      corner[2 * k] = place.x[i] + (a * Math.sin(turn) + b * Math.cos(turn)) * perMetre;
      corner[2 * k + 1] = place.y[i] - (a * Math.cos(turn) - b * Math.sin(turn)) * perMetre;
    }
    return corner;
  }
  const made = data.levels.map(() => []);
  function region(level, i) {
    if (!made[level][i]) {
      const all = rings(level, i), box = [Infinity, Infinity, -Infinity, -Infinity];
      for (const corner of all) for (let k = 0; k < corner.length; k += 2) {
        box[0] = Math.min(box[0], corner[k]); box[1] = Math.min(box[1], corner[k + 1]);
        box[2] = Math.max(box[2], corner[k]); box[3] = Math.max(box[3], corner[k + 1]);
      }
      made[level][i] = { rings: all, box };
    }
    return made[level][i];
  }

  // What is shown.
  const swatch = {
    receivers: '<path d="M11 3l6 11H5z" fill="#1d2733"/>',
    fixes: '<circle cx="6" cy="9" r="5" fill="#0072b2"/><circle cx="17" cy="9" r="5" fill="#d55e00"/>',
    wide: '<ellipse cx="11" cy="9" rx="10" ry="7" fill="#0072b226" stroke="#0072b2"/>',
    narrow: '<ellipse cx="11" cy="9" rx="7" ry="5" fill="#0072b266" stroke="#0072b2"/>',
    others: '<path d="M11 3l6 6-6 6-6-6z" fill="#fff" stroke="#d55e00" stroke-width="2"/>',
    errors: '<path d="M3 14L18 4" stroke="#00785a" stroke-width="2"/><path d="M14 4h8M18 0v8" stroke="#00785a" stroke-width="2"/>',
    graticule: '<path d="M7 1v16M15 1v16M2 5h18M2 13h18" stroke="#9aa4ae"/>',
    streets: '<path d="M2 15L9 3l4 8 4-5 4 9" fill="none" stroke="#5a6673" stroke-width="1.5"/>',
  };
  const known = fixes.true_lon.some(value => value !== null), several = fixes.others.some(list => list.length);
  const layers = [
    ["receivers", `Receivers (${data.receivers.length})`, true],
    ["fixes", "Fixes", true, "Places that were found. Orange: something speaks against it."],
    ["wide", "Area of 95 % probability", true],
    ["narrow", "Area of 50 % probability", true],
    ...(several ? [["others", "Other possible places", true]] : []),
    ...(known ? [["errors", "True places, where known", true]] : []),
    ["graticule", "Latitude and longitude", true],
    ["streets", "Street map", false, "Needs the internet, and tells openstreetmap.org where you look."],
  ];
  const on = Object.fromEntries(layers.map(([name, , shown]) => [name, shown]));

  const panel = document.getElementById("panel");
  const map = L.map("map", { zoomSnap: 0.25, maxZoom: 20, minZoom: 2, attributionControl: false, zoomControl: false });
  L.control.attribution({ prefix: '<a href="https://leafletjs.com">Leaflet</a>' }).addTo(map);
  const slim = window.innerWidth <= 640;
  if (!slim) L.control.zoom({ position: "bottomright" }).addTo(map); // small screens are zoomed with two fingers
  L.control.scale({ imperial: false, maxWidth: 160 }).addTo(map);
  const streets = L.tileLayer("https://tile.openstreetmap.org/{z}/{x}/{y}.png", {
    maxZoom: 20, maxNativeZoom: 19, referrerPolicy: "strict-origin-when-cross-origin",
    attribution: '&copy; <a href="https://www.openstreetmap.org/copyright">OpenStreetMap</a> contributors',
  });
  let refused = false;
  streets.on("tileerror", () => { refused = true; picture.redraw(); });
  streets.on("tileload", () => { refused = false; picture.redraw(); });

  // Fixes stand in the order of time, so those of a period are a range.
  const first = (values, limit) => { let low = 0, high = values.length; while (low < high) { const m = (low + high) >> 1; if (values[m] > limit) high = m; else low = m + 1; } return low; };
  const span = count ? fixes.seconds[count - 1] - fixes.seconds[0] : 0;
  let from = 0, to = count, selected = -1;

  const Picture = L.Layer.extend({
    onAdd() {
      this.canvas = L.DomUtil.create("canvas", "leaflet-zoom-animated", map.getPane("overlayPane"));
      map.on("move zoom viewreset moveend zoomend resize", this.redraw, this);
      map.on("zoomanim", this.animate, this);
      this.redraw();
    },
    animate(event) {
      const corner = map._latLngBoundsToNewLayerBounds(map.getBounds(), event.zoom, event.center).min;
      L.DomUtil.setTransform(this.canvas, corner, map.getZoomScale(event.zoom));
    },
    redraw() {
      if (!this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; if (!map._animatingZoom) this.draw(); });
    },
    draw() {
      const size = map.getSize(), ratio = window.devicePixelRatio || 1;
      const scale = 256 * 2 ** map.getZoom(), origin = map.getPixelBounds().min;
      const canvas = this.canvas;
      if (canvas.width !== Math.round(size.x * ratio) || canvas.height !== Math.round(size.y * ratio)) {
        canvas.width = Math.round(size.x * ratio); canvas.height = Math.round(size.y * ratio);
        canvas.style.width = `${size.x}px`; canvas.style.height = `${size.y}px`;
      }
      L.DomUtil.setPosition(canvas, map.containerPointToLayerPoint([0, 0]));
      const ink = canvas.getContext("2d");
      ink.setTransform(ratio, 0, 0, ratio, 0, 0);
      ink.clearRect(0, 0, size.x, size.y);
      const x = value => value * scale - origin.x, y = value => value * scale - origin.y;
      const view = [origin.x / scale, origin.y / scale, (origin.x + size.x) / scale, (origin.y + size.y) / scale];
      if (on.graticule) drawGraticule(ink, size, x, y);
      const drawn = drawRegions(ink, scale, view, x, y);
      if (on.errors) drawErrors(ink, x, y);
      if (on.others) drawOthers(ink, x, y);
      if (on.fixes) drawFixes(ink, size, x, y);
      if (on.receivers) drawReceivers(ink, size, x, y);
      say(drawn);
    },
  });

  function drawRegions(ink, scale, view, x, y) {
    const levels = [["wide", 1, 0.13], ["narrow", 0, 0.28]].filter(([name]) => on[name]);
    let drawn = 0, left = 0, tiny = 0;
    for (const [, level, opacity] of levels) {
      drawn = left = 0;
      // The newest first, so that the limit leaves out the oldest.
      for (let i = to - 1; i >= from; i--) {
        const { rings, box } = region(level, i);
        if (box[0] > view[2] || box[2] < view[0] || box[1] > view[3] || box[3] < view[1]) continue;
        const size = Math.max(box[2] - box[0], box[3] - box[1]) * scale;
        if (level === 1 && size < DOT_PX) tiny++;
        if (size < SMALLEST_PX) continue;
        if (drawn >= MOST_REGIONS && i !== selected) { left++; continue; }
        drawn++;
        ink.beginPath();
        for (const corner of rings) {
          ink.moveTo(x(corner[0]), y(corner[1]));
          for (let k = 2; k < corner.length; k += 2) ink.lineTo(x(corner[k]), y(corner[k + 1]));
          ink.closePath();
        }
        // One that is asked about stands out.
        const faded = selected >= 0 && i !== selected ? 0.35 : 1;
        ink.globalAlpha = i === selected ? 2 * opacity : faded * opacity;
        ink.fillStyle = BLUE;
        ink.fill("evenodd");
        ink.globalAlpha = i === selected ? 1 : faded * 0.55;
        ink.lineWidth = i === selected ? 2 : 1;
        ink.strokeStyle = BLUE;
        ink.stroke();
      }
    }
    ink.globalAlpha = 1;
    return { drawn, left, tiny };
  }
  function drawErrors(ink, x, y) {
    ink.strokeStyle = GREEN; ink.lineWidth = 1.5;
    ink.beginPath();
    for (let i = from; i < to; i++) {
      if (fixes.true_lon[i] === null) continue;
      const a = x(truth.x[i]), b = y(truth.y[i]), c = x(place.x[i]), d = y(place.y[i]);
      if (Math.abs(a - c) + Math.abs(b - d) < 2) continue;
      ink.moveTo(a, b); ink.lineTo(c, d);
      ink.moveTo(a - 4, b); ink.lineTo(a + 4, b);
      ink.moveTo(a, b - 4); ink.lineTo(a, b + 4);
    }
    ink.stroke();
  }
  function drawOthers(ink, x, y) {
    ink.strokeStyle = VERMILION; ink.fillStyle = "#fff";
    for (let i = from; i < to; i++) for (const other of others[i]) {
      const a = x(other.x), b = y(other.y);
      ink.lineWidth = i === selected ? 2 : 1;
      ink.globalAlpha = i === selected ? 1 : 0.35;
      ink.setLineDash([4, 4]);
      ink.beginPath(); ink.moveTo(x(place.x[i]), y(place.y[i])); ink.lineTo(a, b); ink.stroke();
      ink.setLineDash([]);
      ink.globalAlpha = 1;
      ink.lineWidth = 1.5;
      ink.beginPath(); ink.moveTo(a, b - 5); ink.lineTo(a + 5, b); ink.lineTo(a, b + 5); ink.lineTo(a - 5, b); ink.closePath();
      ink.fill(); ink.stroke();
    }
  }
  function drawFixes(ink, size, x, y) {
    const radius = to - from > 3000 ? 2.5 : to - from > 300 ? 3.5 : 5;
    ink.lineWidth = 1; ink.strokeStyle = "#fff";
    for (let i = from; i < to; i++) {
      const a = x(place.x[i]), b = y(place.y[i]);
      if (a < -9 || b < -9 || a > size.x + 9 || b > size.y + 9) continue;
      ink.fillStyle = fixes.flags[i].length ? VERMILION : BLUE;
      ink.beginPath(); ink.arc(a, b, radius, 0, 2 * Math.PI); ink.fill();
      if (radius > 3) ink.stroke();
    }
    if (selected >= from && selected < to) {
      ink.strokeStyle = BLACK; ink.lineWidth = 2;
      ink.beginPath(); ink.arc(x(place.x[selected]), y(place.y[selected]), radius + 4, 0, 2 * Math.PI); ink.stroke();
    }
  }
  function drawReceivers(ink, size, x, y) {
    const used = new Set(selected >= from && selected < to ? fixes.heard[selected].map(([site]) => site) : []);
    ink.lineWidth = 1;
    for (const site of used) {
      ink.strokeStyle = BLACK; ink.globalAlpha = 0.35;
      ink.beginPath(); ink.moveTo(x(sites.x[site]), y(sites.y[site])); ink.lineTo(x(place.x[selected]), y(place.y[selected])); ink.stroke();
    }
    ink.globalAlpha = 1;
    ink.font = "600 12px system-ui, sans-serif"; ink.textBaseline = "middle"; ink.textAlign = "left";
    // A name stands where it covers neither a receiver nor another name; where there is no such place, it is left out.
    const taken = data.receivers.map((_, k) => [x(sites.x[k]) - 8, y(sites.y[k]) - 9, x(sites.x[k]) + 8, y(sites.y[k]) + 6]);
    const labels = [];
    data.receivers.forEach((receiver, k) => {
      const a = x(sites.x[k]), b = y(sites.y[k]);
      ink.fillStyle = BLACK; ink.strokeStyle = "#fff"; ink.lineWidth = 1.5;
      ink.beginPath(); ink.moveTo(a, b - 8); ink.lineTo(a + 7, b + 5); ink.lineTo(a - 7, b + 5); ink.closePath(); ink.fill(); ink.stroke();
      const name = receiver.name.length > 24 ? `${receiver.name.slice(0, 23)}…` : receiver.name;
      const wide = ink.measureText(name).width;
      for (const [left, middle] of [[a - wide / 2, b + 15], [a + 12, b], [a - 12 - wide, b], [a - wide / 2, b - 18]]) {
        const box = [left - 2, middle - 8, left + wide + 2, middle + 8];
        if (taken.some(([l, t, r, d], j) => j !== k && l < box[2] && r > box[0] && t < box[3] && d > box[1])) continue;
        taken.push(box);
        labels.push([name, left, middle]);
        break;
      }
      // A line that leads out of the view says where to.
      const out = a < 0 || b < 0 || a > size.x || b > size.y;
      if (!used.has(k) || !out) return;
      const c = x(place.x[selected]), d = y(place.y[selected]);
      const along = right => Math.min(1, ...[[c, a, 6 + wide / 2, size.x - right - wide / 2], [d, b, 28, size.y - 14]].map(([start, end, low, high]) =>
        start < low || start > high ? 0 : end > high ? (high - start) / (end - start) : end < low ? (low - start) / (end - start) : 1));
      let share = along(6);
      const besidePanel = c + share * (a - c) + wide / 2 > size.x - panel.offsetWidth - 16;
      if (besidePanel && d + share * (b - d) < panel.offsetHeight + 24) share = along(panel.offsetWidth + 20);
      if (share * Math.hypot(a - c, b - d) < 60) return; // it would look like the name of the fix
      const at = [c + share * (a - c) - wide / 2, d + share * (b - d)], box = [at[0] - 2, at[1] - 8, at[0] + wide + 2, at[1] + 8];
      if (taken.some(([l, t, r, e], j) => j >= data.receivers.length && l < box[2] && r > box[0] && t < box[3] && e > box[1])) return;
      taken.push(box);
      labels.push([name, ...at]);
    });
    for (const [name, left, middle] of labels) {
      ink.lineWidth = 3; ink.strokeStyle = "rgb(255 255 255 / 85%)"; ink.lineJoin = "round"; ink.fillStyle = BLACK;
      ink.strokeText(name, left, middle); ink.fillText(name, left, middle);
    }
  }
  function drawGraticule(ink, size, x, y) {
    const bounds = map.getBounds(), wide = bounds.getEast() - bounds.getWest();
    const wanted = wide * 120 / size.x; // a line every 120 pixels
    const power = 10 ** Math.floor(Math.log10(wanted));
    const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= wanted) || 10 * power;
    const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const name = (value, sides) => {
      const turned = sides === "EW" ? ((value + 180) % 360 + 360) % 360 - 180 : value;
      const text = Math.abs(turned).toFixed(places);
      return `${text}°${Number(text) ? ` ${sides[turned < 0 ? 1 : 0]}` : ""}`;
    };
    ink.strokeStyle = "rgb(90 102 115 / 28%)"; ink.lineWidth = 1; ink.fillStyle = "#5a6673";
    ink.font = "11px system-ui, sans-serif";
    ink.beginPath();
    const labels = [], beside = panel.offsetWidth;
    for (let k = Math.ceil(bounds.getWest() / step); k * step <= bounds.getEast(); k++) {
      const a = Math.round(x(mercatorX(k * step))) + 0.5;
      ink.moveTo(a, 0); ink.lineTo(a, size.y);
      if (a > 70 && a < size.x - 30 - beside) labels.push([name(k * step, "EW"), a, 5, "center", "top"]);
    }
    for (let k = Math.ceil(bounds.getSouth() / step); k * step <= bounds.getNorth(); k++) {
      if (Math.abs(k * step) > 85) continue;
      const b = Math.round(y(mercatorY(k * step))) + 0.5;
      ink.moveTo(0, b); ink.lineTo(size.x, b);
      if (b > 90 && b < size.y - 50) labels.push([name(k * step, "NS"), 6, b - 3, "left", "bottom"]);
    }
    ink.stroke();
    for (const [text, a, b, align, baseline] of labels) {
      ink.textAlign = align; ink.textBaseline = baseline;
      ink.lineWidth = 3; ink.strokeStyle = "rgb(255 255 255 / 80%)"; ink.lineJoin = "round";
      ink.strokeText(text, a, b); ink.fillText(text, a, b);
    }
  }

  // What one can ask.
  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }
  const metres = value => value >= 99500 ? `${(value / 1000).toFixed(0)} km` : value >= 995 ? `${(value / 1000).toPrecision(2)} km`
    : value >= 10 ? `${value.toFixed(0)} m` : `${value.toFixed(1)} m`;
  const percent = value => value > 0.995 ? "over 99 %" : value < 0.005 ? "under 1 %" : `${Math.round(100 * value)} %`;
  const degrees = (lat, lon) => {
    const turned = ((lon + 180) % 360 + 360) % 360 - 180;
    return `${Math.abs(lat).toFixed(5)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(turned).toFixed(5)}° ${turned < 0 ? "W" : "E"}`;
  };
  const moment = text => text.replace("T", " ").replace(/\.?0*Z$|Z$/, end => (text.includes(".") ? "" : end.slice(0, -1))) + " UTC";

  const period = (start, end) => `${start.replace("T", " ")} to ${start.slice(0, 10) === end.slice(0, 10) ? end.slice(11) : end.replace("T", " ")} UTC`;

  function aboutFix(i) {
    const box = element("div");
    box.append(element("h2", fixes.id[i]), element("div", moment(fixes.time[i]), "quiet"));
    for (const flag of fixes.flags[i]) box.append(element("p", data.flags[flag] || flag, "warning"));
    const [major, minor] = fixes.axes[1][i];
    const about = element("p", degrees(fixes.lat[i], fixes.lon[i]));
    about.append(element("br"), `With 95 % probability it is inside an ellipse with half axes of ${metres(major)} and ${metres(minor)}` +
      (fixes.probability[i] < 0.995 ? `, if this place is the right one (${percent(fixes.probability[i])}).` : "."));
    box.append(about);
    for (const other of fixes.others[i])
      box.append(element("p", `It may also be at ${degrees(other[1], other[0])} (${percent(other[2])}).`));
    if (fixes.error[i] !== null) box.append(element("p", `The true place is known: it is ${metres(fixes.error[i])} away (green cross).`));
    const walk = element("nav"); // above the table, which may be long
    const add = (text, enabled, act) => {
      const button = element("button", text);
      button.type = "button";
      button.disabled = !enabled;
      button.addEventListener("click", event => {
        event.stopPropagation(); // the button is gone when Leaflet looks where the click was, and would close the popup
        act();
      });
      walk.append(button);
    };
    add("Earlier", i > from, () => select(i - 1));
    add("Zoom to it", true, () => {
      map.closePopup(); // it would cover the half of it
      selected = i;
      const around = L.latLng(fixes.lat[i], fixes.lon[i]).toBounds(3 * major);
      fit(fixes.error[i] === null ? around : around.extend([fixes.true_lat[i], fixes.true_lon[i]]), 18);
      picture.redraw();
    });
    add("Later", i + 1 < to, () => select(i + 1));
    box.append(walk);
    const table = element("table"), head = element("tr");
    head.append(element("th", "heard by"), element("th", "direct path"), element("th", "late by"));
    table.append(head);
    for (const [site, weight, residual] of fixes.heard[i]) {
      const row = element("tr");
      row.append(element("td", data.receivers[site].name), element("td", weight === null ? "no time" : `${Math.round(100 * weight)} %`),
        element("td", residual === null ? "" : `${residual.toFixed(0).replace("-", "−")} ns`));
      table.append(row);
    }
    if (fixes.heard[i].length) box.append(table);
    if (fixes.hdop[i] !== null) box.append(element("p", `The geometry multiplies errors by ${fixes.hdop[i].toFixed(1)} (HDOP).`, "quiet"));
    return box;
  }
  function aboutReceiver(k) {
    const receiver = data.receivers[k], box = element("div");
    let heard = 0;
    for (let i = from; i < to; i++) if (fixes.heard[i].some(([site]) => site === k)) heard++;
    box.append(element("h2", receiver.name), element("div", "receiver", "quiet"),
      element("p", `${degrees(receiver.lat, receiver.lon)}, ${receiver.altitude_m.toFixed(0)} m over the ellipsoid.`),
      element("p", receiver.timed ? "It measures arrival times." : "It measures signal levels, no arrival times."),
      element("p", `It heard ${heard.toLocaleString("en")} of the ${(to - from).toLocaleString("en")} transmissions shown.`));
    return box;
  }
  const popup = L.popup({
    maxWidth: Math.min(330, window.innerWidth - 60), minWidth: 220,
    autoPanPaddingTopLeft: [12, slim ? 56 : 12],
  });
  function tell(lat, lon, content) {
    // Between the panel and the scale, where the screen is small.
    popup.options.maxHeight = Math.max(160, map.getContainer().clientHeight - (slim ? 190 : 130));
    // Beside the panel, which lies above it.
    popup.options.autoPanPaddingBottomRight = slim ? [12, 40] : [24 + panel.offsetWidth, 12];
    popup.setLatLng([lat, lon]).setContent(content).openOn(map);
  }
  function fit(bounds, maxZoom) {
    // Beside the panel, if there is room for both.
    const beside = slim ? 0 : panel.offsetWidth;
    map.fitBounds(bounds, { paddingTopLeft: [44, 36], paddingBottomRight: [36 + beside, 36], maxZoom });
  }
  function select(i) {
    selected = i;
    tell(fixes.lat[i], fixes.lon[i], aboutFix(i));
    picture.redraw();
  }
  map.on("popupclose", () => { selected = -1; picture.redraw(); });

  function nearest(point) {
    const scale = 256 * 2 ** map.getZoom(), origin = map.getPixelBounds().min;
    let best = HIT_PX ** 2, found = null;
    const look = (x, y, what) => {
      const d = (x * scale - origin.x - point.x) ** 2 + (y * scale - origin.y - point.y) ** 2;
      if (d < best) { best = d; found = what; }
    };
    if (on.receivers) for (let k = 0; k < sites.x.length; k++) look(sites.x[k], sites.y[k], { receiver: k });
    if (on.fixes) for (let i = from; i < to; i++) look(place.x[i], place.y[i], { fix: i });
    if (on.others) for (let i = from; i < to; i++) for (const other of others[i]) look(other.x, other.y, { fix: i });
    return found;
  }
  map.on("click", event => {
    const found = nearest(event.containerPoint);
    if (!found) {
      selected = -1;
      return picture.redraw();
    }
    if ("fix" in found) select(found.fix);
    else tell(data.receivers[found.receiver].lat, data.receivers[found.receiver].lon, aboutReceiver(found.receiver));
  });
  map.on("mousemove", event => map.getContainer().classList.toggle("leaflet-interactive-fix", !!nearest(event.containerPoint)));

  // The panel, the words, the time.
  const number = value => value.toLocaleString("en");
  const counted = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
  const summary = [`${counted(count, "fix").replace("fixs", "fixes")} by ${counted(data.receivers.length, "receiver")}`];
  if (count) summary.push(fixes.time[0] === fixes.time[count - 1] ? moment(fixes.time[0])
    : period(fixes.time[0].slice(0, 19), fixes.time[count - 1].slice(0, 19)));
  if (data.without_position) summary.push(`${number(data.without_position)} more without a position`);
  if (data.left_out) summary.push(`the map holds the first ${number(data.shown)} of ${number(data.shown + data.left_out)} transmissions`);
  summary.push("click on a fix or a receiver to read about it");
  document.getElementById("summary").textContent = summary.join(" · ");

  const beyond = [...fixes.lat, ...data.receivers.map(r => r.lat)].filter(lat => Math.abs(lat) > EDGE).length;
  function say({ drawn, left, tiny }) {
    const said = [];
    if (beyond) said.push(`This map ends at 85° of latitude: ${counted(beyond, "place")} beyond are drawn at its edge.`);
    if (tiny > (to - from) / 2) said.push("Most areas are smaller than the dots here: zoom in, or click on a fix.");
    if (left) said.push(`Drawn are the regions of the newest ${number(drawn)} of ${number(drawn + left)} fixes in view. Zoom in for all.`);
    if (data.ellipses && (on.wide || on.narrow)) said.push(`The last ${number(data.ellipses)} fixes have ellipses, not their exact regions.`);
    if (on.streets && refused) said.push("The street map does not load. There is no connection, or openstreetmap.org refuses a page that is opened as a file.");
    const note = document.getElementById("note"), text = said.join(" ");
    if (note.textContent !== text) note.textContent = text;
  }
  for (const [name, text, shown, hint] of layers) {
    const label = element("label"), box = element("input"), words = element("span", text);
    box.type = "checkbox"; box.checked = shown; box.name = name;
    box.addEventListener("change", () => {
      on[name] = box.checked;
      if (name === "streets") { refused = false; box.checked ? streets.addTo(map) : streets.remove(); }
      picture.redraw();
    });
    if (hint) words.append(element("small", hint));
    label.append(box);
    label.insertAdjacentHTML("beforeend", `<svg width="22" height="18" viewBox="0 0 22 18" aria-hidden="true">${swatch[name]}</svg>`);
    label.append(words);
    document.getElementById("layers").append(label);
  }
  panel.open = !slim;

  const slider = document.getElementById("time"), length = document.getElementById("window"), play = document.getElementById("play");
  function setTime() {
    // The end of the slider is the last fix, to the last digit.
    const end = Number(slider.value) === 1000 ? Infinity : fixes.seconds[0] + span * slider.value / 1000;
    to = first(fixes.seconds, end);
    from = length.value === "all" ? 0 : first(fixes.seconds, Math.min(end, fixes.seconds[count - 1]) - Number(length.value));
    const at = new Date(1000 * (data.start_s + Math.min(end, fixes.seconds[count - 1])));
    document.getElementById("now").textContent = `${at.toISOString().slice(0, 19).replace("T", " ")} UTC: ${counted(to - from, "fix").replace("fixs", "fixes")}`;
    if (selected >= 0 && (selected < from || selected >= to)) map.closePopup();
    picture.redraw();
  }
  const picture = new Picture();
  const corners = data.receivers.map(r => [r.lat, r.lon]);
  if (count) {
    // Without the outermost hundredth: one fix far away shall not make all others a dot.
    const sorted = values => [...values].sort((a, b) => a - b);
    const lat = sorted(fixes.lat), lon = sorted(fixes.lon), cut = Math.floor(count / 100);
    corners.push([lat[cut], lon[cut]], [lat[count - 1 - cut], lon[count - 1 - cut]]);
  }
  fit(corners, 16);
  picture.addTo(map);
  if (span > 0) {
    document.getElementById("timeline").hidden = false;
    map.invalidateSize();
    length.append(new Option("all so far", "all"));
    for (const [text, seconds] of [["last second", 1], ["last 10 s", 10], ["last minute", 60], ["last 10 min", 600], ["last hour", 3600], ["last 6 h", 21600], ["last day", 86400], ["last week", 604800]])
      if (seconds < span && seconds > span / 5000) length.append(new Option(text, seconds));
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) === 1000) slider.value = 0;
      play.textContent = "Pause";
      timer = setInterval(() => { slider.value = Number(slider.value) + 5; setTime(); if (Number(slider.value) === 1000) stop(); }, 60);
    });
    slider.addEventListener("input", () => { stop(); setTime(); });
    length.addEventListener("change", setTime);
    setTime();
  }
})();
