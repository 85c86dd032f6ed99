"use strict";
// All classes, and one class: its images, and where the model looks for it.
{
  const { el, name, percent, count, plain } = camcli;
  const PAGE = 120;
  const SAMPLE = 300; // images whose maps are averaged
  const SIDE = 64; // rows and columns that the image is divided into

  camcli.showClasses = (main, query) => {
    const words = (query.get("q") ?? "").toLowerCase();
    const found = camcli.run.classes.filter(([, label]) => label.toLowerCase().includes(words));
    const page = Math.min(Number(query.get("page") ?? 0), Math.max(0, Math.ceil(found.length / PAGE) - 1));
    const most = found[0]?.[2] ?? 1;
    const step = (to, text) => el("button", { type: "button", disabled: to < 0 || to * PAGE >= found.length, onclick: () => camcli.change({ page: String(to) }) }, text);
    main.replaceChildren(
      el("h1", {}, "Classes"),
      el("p", { class: "tally" }, `${count(found.length, "class", "classes")} that are the most probable one of some image; images and mean probability`),
      el("section", { class: "card bars" }, found.slice(page * PAGE, (page + 1) * PAGE).map((one) => camcli.classBar(one, most))),
      found.length > PAGE ? el("p", { class: "pages" }, step(page - 1, "←"), ` ${page + 1} of ${Math.ceil(found.length / PAGE)} `, step(page + 1, "→")) : "",
    );
  };

  // The mean of the maps of images of a class, each over its whole image; null where no map was kept.
  const meanHeat = async (rows, index) => {
    const every = Math.max(1, rows.length / SAMPLE);
    const some = Array.from({ length: Math.min(rows.length, SAMPLE) }, (_, i) => rows[Math.floor(i * every)]);
    const sum = new Float32Array(SIDE * SIDE);
    const seen = new Uint16Array(SIDE * SIDE);
    let maps = 0;
    for (const row of some) {
      const { record, heat } = await camcli.detail(row);
      const at = record.heatmaps.findIndex((heatmap, i) => !heatmap.signed && !heatmap.concept && heat[i] && (!heatmap.target || heatmap.target.index === index));
      if (at < 0) continue;
      add(sum, seen, camcli.values(heat[at], false), record);
      maps += 1;
    }
    return maps ? { maps, map: { rows: SIDE, columns: SIDE, values: sum.map((value, i) => (seen[i] ? value / seen[i] : NaN)) } } : null;
  };

  const add = (sum, seen, map, { seen: [x0, y0, x1, y1], width, height }) => {
    for (let y = 0; y < SIDE; y++) {
      for (let x = 0; x < SIDE; x++) {
        const u = (((x + 0.5) / SIDE) * width - x0) / (x1 - x0);
        const v = (((y + 0.5) / SIDE) * height - y0) / (y1 - y0);
        if (u < 0 || u > 1 || v < 0 || v > 1) continue;
        sum[y * SIDE + x] += camcli.sample(map, u, v);
        seen[y * SIDE + x] += 1;
      }
    }
  };

  const where = (rows, index) => {
    const card = el("section", { class: "card mean" }, el("h2", {}, "Where it looks"), el("p", { class: "soft" }, "Reading maps …"));
    meanHeat(rows, index).then((found) => {
      if (!found) {
        card.lastChild.textContent = "No maps were kept: run with --set maps=npz to see the mean heat of a class.";
        return;
      }
      const canvas = el("canvas", { width: 256, height: 256, role: "img", "aria-label": "Mean heat over the whole image" });
      const most = Math.max(...found.map.values.filter((value) => value >= 0), 1e-9);
      const scaled = { ...found.map, values: found.map.values.map((value) => value / most) };
      camcli.paint(canvas, scaled, { signed: false, colours: Object.keys(camcli.run.colours)[0], opacity: 1, opaque: true });
      card.lastChild.replaceWith(canvas, el("p", { class: "soft" }, `Mean heat of ${count(found.maps, "map")}, each laid over the square whatever its image's shape. Clear: never seen by the model. The hottest place has ${percent(most)} of full heat.`));
    });
    return card;
  };

  camcli.showClass = (main, index, query) => {
    const found = camcli.run.classes.find((one) => one[0] === index);
    const rows = camcli.matching(new URLSearchParams({ class: index, sort: query.get("sort") ?? "least" }));
    const label = found?.[1] ?? rows[0]?.l ?? `class ${index}`;
    const list = new URLSearchParams({ class: index, sort: query.get("sort") ?? "least" });
    const sorts = [["least", "least certain first"], ["most", "most certain first"], ["path", "path"]];
    main.replaceChildren(
      el("h1", {}, name(label)),
      el("p", { class: "tally" }, found ? `${count(rows.length, "image")}, mean probability ${percent(found[3])} · class ${index} · ` : "No image of this run has it as the most probable class. ", found ? el("a", { href: `#/images?${list}` }, "filter further") : ""),
      rows.length && !camcli.run.concepts.length ? el("div", { class: "cards" }, where(rows, index)) : "",
      el("form", { class: "filters" }, el("label", {}, el("span", {}, "sort"), el("select", { onchange: (event) => camcli.change({ sort: event.target.value }) }, sorts.map(([value, text]) => el("option", { value, selected: value === list.get("sort") }, text))))),
      rows.length ? camcli.grid(rows, list, 188) : "",
    );
  };
}
