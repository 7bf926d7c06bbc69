// Updates the page live and switches tabs without a reload. Everything works without this script.
"use strict";

(() => {
  const events = document.body.dataset.events;

  /** Load the page at `address`; null if that fails. */
  async function load(address) {
    try {
      const response = await fetch(address, { headers: { Accept: "text/html" } });
      return response.ok ? new DOMParser().parseFromString(await response.text(), "text/html") : null;
    } catch {
      return null;
    }
  }

  /** Replace `old` by `fresh`, and keep the focus on the same control. */
  function replace(old, fresh) {
    if (old.outerHTML === fresh.outerHTML) return;
    const focus = old.contains(document.activeElement) ? identify(document.activeElement) : null;
    if (old.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
    old.replaceWith(document.adoptNode(fresh));
    if (focus) [...fresh.querySelectorAll(focus.selector)].find((one) => identify(one).text === focus.text)?.focus();
  }

  function identify(element) {
    const selector = element.tagName.toLowerCase();
    return { selector, text: element.dataset.soft === undefined && element.getAttribute("href") || element.textContent };
  }

  const subjects = (root) =>
    new Map([...root.querySelectorAll(".messages a")].map((row) => [row.href, row.querySelector(".subject").textContent]));

  /** Announce new messages to screen readers. */
  function announce(before) {
    const added = [...subjects(document)].filter(([address]) => !before.has(address));
    if (added.length) document.getElementById("news").textContent = `New mail: ${added.map((one) => one[1]).join(", ")}`;
  }

  let refreshing = false;
  let again = false;

  /** Update the live elements; changes during an update cause one more update. */
  async function refresh() {
    again = refreshing;
    if (refreshing) return;
    refreshing = true;
    await update();
    refreshing = false;
    if (again) refresh();
  }

  async function update() {
    const page = await load(location.href);
    if (!page) return;
    const before = subjects(document);
    for (const old of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(old.id);
      if (fresh) replace(old, fresh);
    }
    document.title = page.title;
    announce(before);
  }

  let source = null;

  // Browsers open only six connections to one server, so a hidden tab closes its own.
  function connect() {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (events !== undefined && !source) {
      source = new EventSource(events);
      source.onopen = refresh;
      source.onmessage = refresh;
    }
  }

  document.addEventListener("visibilitychange", connect);
  window.addEventListener("pagehide", () => source?.close());
  connect();

  document.addEventListener("click", async (click) => {
    const link = click.target.closest("a[data-soft]");
    if (!link || click.ctrlKey || click.metaKey || click.shiftKey || click.button) return;
    click.preventDefault();
    const page = await load(link.href);
    const view = document.getElementById("view");
    const fresh = page?.getElementById("view");
    if (!fresh) {
      location.assign(link.href);
      return;
    }
    history.replaceState(null, "", link.href);
    replace(view, fresh);
  });

  document.addEventListener("keydown", (key) => {
    const row = key.target.closest?.(".messages li");
    const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[key.key];
    if (!row || !next) return;
    key.preventDefault();
    row[next]?.querySelector("a").focus();
  });
})();
