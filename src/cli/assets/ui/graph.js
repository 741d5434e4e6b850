// What pods and nodes use, over time. Measuring is the one thing that cannot be watched, so it is asked for
// every few seconds, and only while somebody looks.

const SAMPLE_MS = 5000;
const SAMPLES = 180;

const usage = {
	pods: new Map(), // "namespace/name" → [{time, cpu, memory}, …]
	nodes: new Map(),
	listeners: new Set(),
	available: undefined,
	last: (map, key) => map.get(key)?.at(-1),
};

async function measure() {
	if (document.hidden) return;
	const base = "/apis/metrics.k8s.io/v1beta1";
	try {
		const [nodes, pods] = await Promise.all([askJson(`${base}/nodes`), askJson(`${base}/pods`)]);
		const time = Date.now();
		keep(usage.nodes, nodes.items, time, (item) => [item.usage]);
		keep(usage.pods, pods.items, time, (item) => item.containers.map((container) => container.usage));
		usage.available = true;
	} catch {
		usage.available = false;
	}
	for (const listener of [...usage.listeners]) listener();
}

function keep(map, items, time, parts) {
	const seen = new Set();
	for (const item of items) {
		const key = keyOf(item);
		const sum = (name) => parts(item).reduce((total, part) => total + quantity(part[name]), 0);
		const list = map.get(key) ?? [];
		list.push({ time, cpu: sum("cpu"), memory: sum("memory") });
		if (list.length > SAMPLES) list.shift();
		map.set(key, list);
		seen.add(key);
	}
	for (const key of map.keys()) if (!seen.has(key)) map.delete(key);
}

function startMeasuring() {
	measure();
	setInterval(measure, SAMPLE_MS);
	document.addEventListener("visibilitychange", measure);
}

// A line over the last samples. `most` is what the whole height stands for, when there is such a thing.
function sparkline(samples, field, tell, most) {
	const width = 240;
	const height = 44;
	const values = samples.map((sample) => sample[field]);
	const top = Math.max(most ?? 0, ...values) * (most ? 1 : 1.15) || 1;
	const step = width / (SAMPLES - 1);
	const begin = width - step * (values.length - 1);
	const points = values.map((value, index) =>
		`${(begin + index * step).toFixed(1)},${(height - 1 - (value / top) * (height - 4)).toFixed(1)}`);
	const now = values.at(-1) ?? 0;
	const area = points.length ? `M${begin.toFixed(1)},${height} L${points.join(" L")} L${width},${height} Z` : "";
	return svg("svg.spark", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `now ${tell(now)}, highest ${tell(Math.max(0, ...values))}` },
		svg("line.base", { x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }),
		svg("path.area", { d: area }),
		svg("polyline.line", { points: points.join(" ") }));
}

// A graph with its words, redrawn with each sample until `scope` ends.
function graph(title, scope, map, key, field, tell, most) {
	const place = h("figure.graph");
	const draw = () => {
		const samples = map.get(key) ?? [];
		const now = samples.at(-1)?.[field];
		const limit = most?.();
		const said = now === undefined ? "not measured" : tell(now) + (limit ? ` of ${tell(limit)}` : "");
		const minutes = samples.length > 1 ? span((samples.at(-1).time - samples[0].time) / 1000) : "";
		place.replaceChildren(
			h("figcaption", null, h("span", null, title), h("b", null, said), h("span.dim", null, minutes && `last ${minutes}`)),
			sparkline(samples, field, tell, limit));
	};
	usage.listeners.add(draw);
	scope.add(() => usage.listeners.delete(draw));
	draw();
	return place;
}

// A bar for a part of a whole, with its words.
function meter(part, whole, text) {
	const share = whole ? Math.min(1, part / whole) : 0;
	const level = share > 0.9 ? "bad" : share > 0.75 ? "wait" : "ok";
	return h("span.meter", null, h("span.track", null, h(`span.bar.${level}`, { style: { width: `${share * 100}%` } })), h("span.num", null, text));
}
