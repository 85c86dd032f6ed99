"use strict";
// One image: large, with its heat at any opacity, all methods by all targets, and what the model says.
{
  const { el, svg, name, percent, plain } = camcli;
  const FINE = 320; // pixels of the longer side of a painted map

  const label = ({ target, concept }) =>
    target ? target.label : concept ? `concept ${concept.index}: ${camcli.run.concepts[concept.index] ?? ""}` : "the whole image";

  const box = (corners, kind) => {
    const [x0, y0, x1, y1] = corners;
    return svg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: kind });
  };

  // Peak, box and the part that the model saw, in pixels of the image.
  const marks = (record, heatmap) => {
    const parts = [box(record.seen, "seen")];
    if (heatmap?.box) parts.push(box(heatmap.box, "hot"));
    if (heatmap?.peak) {
      const [x, y] = heatmap.peak;
      const arm = Math.max(record.width, record.height) / 40;
      parts.push(svg("path", { d: `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`, class: "peak" }));
    }
    return svg("svg", { class: "marks", viewBox: `0 0 ${record.width} ${record.height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts);
  };

  // A map as a canvas that lies on the part of the image that the model saw.
  const heatCanvas = (record, heatmap, heat, { colours, opacity }) => {
    const map = camcli.values(heat, heatmap.signed);
    const [x0, y0, x1, y1] = record.seen;
    const share = FINE / Math.max(x1 - x0, y1 - y0);
    const canvas = el("canvas", { width: Math.max(1, Math.round((x1 - x0) * share)), height: Math.max(1, Math.round((y1 - y0) * share)), class: "heat" });
    canvas.style.left = `${(100 * x0) / record.width}%`;
    canvas.style.top = `${(100 * y0) / record.height}%`;
    canvas.style.width = `${(100 * (x1 - x0)) / record.width}%`;
    canvas.style.height = `${(100 * (y1 - y0)) / record.height}%`;
    camcli.paint(canvas, map, { signed: heatmap.signed, colours: heatmap.signed ? "RdBu_r" : colours, opacity });
    return canvas;
  };

  const stage = (record, detail, view) => {
    const heatmap = record.heatmaps[view.index];
    const heat = heatmap && detail.heat[view.index];
    const bare = view.side === "image" || (heat && detail.image);
    const address = bare && detail.image ? detail.image : (detail.overlays[view.index] ?? detail.image);
    const said = `${plain(record.id)}${heatmap && view.side !== "image" ? `, heat of ${heatmap.method} for ${plain(label(heatmap))}` : ""}`;
    const frame = el("div", { class: "canvas" }, address ? el("img", { src: address, alt: said, draggable: "false" }) : el("p", { class: "wait" }, "The image is not where it was."));
    frame.style.aspectRatio = `${record.width} / ${record.height}`;
    frame.style.maxWidth = `calc(min(72vh, 900px) * ${record.width / record.height})`;
    if (heat && detail.image && view.side !== "image") frame.append(heatCanvas(record, heatmap, heat, view));
    if (view.marks) frame.append(marks(record, heatmap));
    return el("div", { class: "stage" }, frame);
  };

  const bars = (record) =>
    el(
      "section",
      { class: "card" },
      el("h2", {}, "What the model says"),
      el(
        "ol",
        { class: "bars top" },
        record.predictions.map((found) =>
          el(
            "li",
            { class: "class-bar" },
            el("a", { class: "label", href: `#/class/${found.index}` }, name(found.label)),
            el("span", { class: "track", "aria-hidden": "true" }, camcli.fill(found.probability)),
            el("span", { class: "number" }, percent(found.probability)),
            el("span", { class: "number soft", title: "logit" }, found.logit.toFixed(2)),
          ),
        ),
      ),
    );

  // Rows are methods, columns are targets.
  const choices = (row, record, view, choose) => {
    const targets = [...new Set(record.heatmaps.map(label))];
    const methods = [...new Set(record.heatmaps.map((heatmap) => heatmap.method))];
    if (record.heatmaps.length < 2) return null;
    const cell = (method, target) => {
      const index = record.heatmaps.findIndex((heatmap) => heatmap.method === method && label(heatmap) === target);
      if (index < 0) return el("td", {});
      const act = el("button", { type: "button", "aria-pressed": String(index === view.index), "aria-label": `${method}, ${plain(target)}`, onclick: () => choose({ index }) }, camcli.thumb(row, { index }));
      return el("td", {}, act);
    };
    return el(
      "section",
      { class: "card" },
      el("h2", {}, camcli.run.concepts.length ? "Concepts" : "Methods and targets"),
      el(
        "div",
        { class: "scroll" },
        el(
          "table",
          { class: "choices" },
          el("thead", {}, el("tr", {}, el("td", {}), targets.map((target) => el("th", { scope: "col" }, name(target))))),
          el("tbody", {}, methods.map((method) => el("tr", {}, el("th", { scope: "row" }, method), targets.map((target) => cell(method, target))))),
        ),
      ),
    );
  };

  const facts = (record, heatmap) => {
    const said = [["size", `${record.width} × ${record.height} px`]];
    if (heatmap) {
      said.push(["layer", record.layer], ["raw range", `${Number(heatmap.raw_min).toPrecision(3)} … ${Number(heatmap.raw_max).toPrecision(3)}`]);
      if (heatmap.empty) said.push(["no evidence", heatmap.reason || "the map is zero everywhere"]);
      if (heatmap.peak) said.push(["peak", heatmap.peak.join(", ")]);
      if (heatmap.box) said.push(["hot region", heatmap.box.map(Math.round).join(", ")]);
      if (heatmap.concept) said.push(["mean heat", percent(heatmap.concept.mean)]);
      if (heatmap.against) said.push(["against", heatmap.against.label]);
    }
    if (record.precision) said.push(["precision", record.precision]);
    said.push(["source", record.source]);
    if (record.input) said.push(["file", `${record.input.bytes.toLocaleString("en")} bytes${record.input.sha256 ? ", sha256 " + record.input.sha256.slice(0, 12) : ""}`]);
    return el("dl", {}, said.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, plain(value))]));
  };

  const flags = (row) =>
    row.f.length ? el("ul", { class: "flags" }, row.f.map((flag) => el("li", {}, el("a", { href: `#/images?flag=${flag}`, title: camcli.run.flags[flag] }, flag)))) : null;

  const controls = (detail, heatmap, view, { choose, repaint }) => {
    const painted = heatmap && detail.heat[view.index] && detail.image;
    const names = Object.keys(camcli.run.colours).filter((colours) => colours !== "RdBu_r");
    return el(
      "div",
      { class: "controls" },
      detail.image ? el("button", { type: "button", "aria-pressed": String(view.side === "image"), onclick: () => choose({ side: view.side === "image" ? "" : "image" }) }, "image only ", el("kbd", {}, "o")) : null,
      el("button", { type: "button", "aria-pressed": String(view.marks), onclick: () => choose({ marks: view.marks ? "" : "1" }) }, "marks ", el("kbd", {}, "m")),
      painted
        ? el("label", {}, el("span", {}, "opacity"), el("input", { type: "range", min: 0, max: 1, step: 0.05, value: view.opacity, name: "opacity", oninput: (event) => repaint(event.target.value), onchange: (event) => choose({ opacity: event.target.value }) }))
        : null,
      painted && !heatmap.signed
        ? el("label", {}, el("span", {}, "colours"), el("select", { name: "colours", onchange: (event) => choose({ colours: event.target.value }) }, names.map((colours) => el("option", { value: colours, selected: colours === view.colours }, colours))))
        : null,
    );
  };

  const neighbours = (row, query) => {
    const list = camcli.matching(query);
    const at = list.indexOf(row);
    const link = (other, text, key) =>
      other ? el("a", { class: "step", href: `#/image/${other.k}?${query}`, rel: key, "data-step": key, "aria-label": `${key}: ${plain(other.id)}` }, text) : el("span", { class: "step off" }, text);
    return el(
      "nav",
      { class: "steps", "aria-label": "Neighbours" },
      el("a", { href: `#/images?${query}`, "data-step": "up" }, "all images"),
      link(at > 0 ? list[at - 1] : null, "←", "previous"),
      el("span", { class: "number" }, at < 0 ? "" : `${at + 1} of ${list.length}`),
      link(at >= 0 ? list[at + 1] : null, "→", "next"),
    );
  };

  const own = ["index", "side", "marks", "opacity", "colours"];

  camcli.showImage = async (main, key, query) => {
    const row = camcli.byKey.get(key);
    if (!row) {
      main.replaceChildren(el("p", { class: "wait" }, camcli.ready ? "There is no such image in this run." : "Loading …"));
      return;
    }
    const asked = location.hash;
    const detail = await camcli.detail(row);
    if (location.hash !== asked) return; // another place has been gone to since
    const record = detail.record;
    const list = new URLSearchParams([...query].filter(([name]) => !own.includes(name)));
    const head = [neighbours(row, list), el("h1", {}, name(record.id))];
    const raw = el("details", { class: "card raw" }, el("summary", {}, "Record"), el("pre", {}, JSON.stringify(record, null, 2)));
    if (record.status === "failed") {
      main.replaceChildren(...head, el("section", { class: "card" }, el("h2", {}, plain(record.kind)), el("p", { class: "message" }, plain(record.message))), raw);
      return;
    }
    const defaults = { opacity: Number(query.get("opacity") ?? camcli.run.alpha), colours: query.get("colours") ?? Object.keys(camcli.run.colours)[0] };
    const wanted = camcli.overlayAt(row, list.get("method") ?? "", list.get("target") ?? "");
    const view = { ...defaults, index: Number(query.get("index") ?? wanted), side: query.get("side") ?? "overlay", marks: query.get("marks") === "1" };
    const heatmap = record.heatmaps[view.index];
    const choose = (changes) => camcli.change(changes);
    const repaint = (opacity) => main.querySelector(".heat")?.replaceWith(heatCanvas(record, heatmap, detail.heat[view.index], { ...view, opacity: Number(opacity) }));
    main.replaceChildren(
      ...head,
      el(
        "div",
        { class: "image" },
        el("div", { class: "left" }, stage(record, detail, view), controls(detail, heatmap, view, { choose, repaint }), choices(row, record, view, choose)),
        el("div", { class: "right" }, flags(row), bars(record), el("section", { class: "card facts" }, el("h2", {}, heatmap ? `${heatmap.method} · ${plain(label(heatmap))}` : "Image"), facts(record, heatmap)), raw),
      ),
    );
    camcli.say(`${plain(record.id)}: ${plain(record.predictions[0].label)}`);
  };

  camcli.imageKeys = {
    o: () => camcli.change({ side: camcli.place().query.get("side") === "image" ? "" : "image" }),
    m: () => camcli.change({ marks: camcli.place().query.get("marks") === "1" ? "" : "1" }),
    ArrowLeft: () => document.querySelector("[data-step=previous]")?.click(),
    ArrowRight: () => document.querySelector("[data-step=next]")?.click(),
    Escape: () => document.querySelector("[data-step=up]")?.click(),
  };
}
