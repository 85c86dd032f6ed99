"use strict";
// The first view: what ran, how it ended, and what deserves a look.
{
  const { el, svg, name, percent, count, plain } = camcli;

  const figure = (value, label, href) =>
    el(href ? "a" : "div", { class: "figure", href }, el("b", {}, value), el("span", {}, label));

  const figures = (run) => {
    const rate = run.seconds ? ((run.done + run.failed) / run.seconds).toFixed(1) : null;
    const least = run.look.find((section) => section.flag === "unsure");
    return el(
      "section",
      { class: "figures", "aria-label": "Counts" },
      figure(run.done.toLocaleString("en"), run.done === 1 ? "image explained" : "images explained", "#/images?status=done"),
      figure(run.failed.toLocaleString("en"), "failed", run.failed ? "#/images?status=failed" : null),
      figure(run.classes.length.toLocaleString("en"), run.classes.length === 1 ? "class" : "classes", "#/classes"),
      figure((least?.images ?? 0).toLocaleString("en"), "below 50%", least ? "#/images?flag=unsure&sort=least" : null),
      rate ? figure(rate, "images/s") : null,
    );
  };

  const facts = (run) =>
    el(
      "section",
      { class: "card facts" },
      el("h2", {}, "What ran"),
      el("dl", {}, run.facts.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, plain(value))])),
    );

  // Bars of equal width; each is a link to its images.
  const histogram = (run) => {
    const [width, height, bins] = [400, 120, run.histogram.length];
    const most = Math.max(...run.histogram, 1);
    const bars = run.histogram.map((images, bin) => {
      const tall = images ? Math.max((height * images) / most, 2) : 0;
      const bar = svg("rect", { x: (bin * width) / bins + 1, y: height - tall, width: width / bins - 2, height: tall, rx: 1.5 });
      const said = `${count(images, "image")} from ${(100 * bin) / bins}% to ${(100 * (bin + 1)) / bins}%`;
      const link = svg("a", { href: `#/images?from=${bin / bins}&to=${(bin + 1) / bins}`, "aria-label": said }, bar);
      link.append(svg("title", {}, said));
      return link;
    });
    return el(
      "section",
      { class: "card" },
      el("h2", {}, "How sure the model is"),
      svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "group", "aria-label": "Images by probability of their first class" }, ...bars),
      el("div", { class: "axis", "aria-hidden": "true" }, ...["0%", "25%", "50%", "75%", "100%"].map((mark) => el("span", {}, mark))),
    );
  };

  const classes = (run) => {
    const most = run.classes[0]?.[2] ?? 1;
    return el(
      "section",
      { class: "card" },
      el("h2", {}, "What it sees"),
      el("div", { class: "bars" }, run.classes.slice(0, 8).map((found) => camcli.classBar(found, most))),
      run.classes.length > 8 ? el("a", { class: "more", href: "#/classes" }, `all ${run.classes.length} classes`) : null,
    );
  };

  camcli.classBar = ([index, label, images, mean], most) =>
    el(
      "a",
      { class: "class-bar", href: `#/class/${index}` },
      name(label, { class: "label" }),
      el("span", { class: "track", "aria-hidden": "true" }, camcli.fill(images / most)),
      el("span", { class: "number" }, images.toLocaleString("en")),
      el("span", { class: "number soft", title: "mean probability" }, percent(mean)),
    );

  camcli.fill = (share) => {
    const bar = el("span", { class: "fill" });
    bar.style.width = `${100 * share}%`;
    return bar;
  };

  const failures = (run) =>
    run.failures.length
      ? el(
          "section",
          { class: "card" },
          el("h2", {}, "What failed"),
          run.failures.map(([kind, images, messages]) =>
            el(
              "details",
              { open: run.failures.length < 4 },
              el("summary", {}, el("b", {}, plain(kind)), " ", count(images, "image")),
              messages.map((message) => el("p", { class: "message" }, plain(message))),
            ),
          ),
        )
      : null;

  const sections = (run) =>
    run.look.map((section) => {
      const why = run.flags[section.flag];
      const all = section.flag ? `#/images?flag=${section.flag}` : `#/images?sort=${section.name === "least certain" ? "least" : "margin"}`;
      return el(
        "section",
        { class: "strip" },
        el(
          "h2",
          {},
          el("a", { href: all }, section.name.replaceAll("-", " ")),
          section.images ? el("span", { class: "number" }, count(section.images, "image")) : null,
          why ? el("small", {}, why) : null,
        ),
        el("div", { class: "tiles row" }, section.rows.map((row) => camcli.tile(row, { query: all.split("?")[1] }))),
      );
    });

  camcli.showOverview = (main) => {
    const run = camcli.run;
    const parts = [facts(run), histogram(run), classes(run), failures(run)];
    main.replaceChildren(el("h1", { class: "unseen" }, "Overview"), figures(run), el("div", { class: "cards" }, parts.filter(Boolean)), ...sections(run));
  };
}
