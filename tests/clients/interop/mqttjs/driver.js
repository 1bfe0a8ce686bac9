// mqtt.js; the command line is that of every driver, see test_interop.py.
const fs = require('fs')
const mqtt = require('mqtt')

const [scenario, version, qosText, url, ca, clientId, topic] = process.argv.slice(2)
const qos = Number(qosText)
const resume = scenario === 'resume'
let shown = false
// Once everything was shown, how the connection ends is not the subject.
const fail = (why) => { if (shown) process.exit(0); console.error(why); process.exit(1) }
let present
const told = new Promise((resolve) => { present = resolve })
setTimeout(() => { if (scenario !== 'will') fail('nothing happened for 60 s') }, 60000)

const options = { clientId, clean: !resume, protocolVersion: version === '5' ? 5 : 4, reconnectPeriod: 0, connectTimeout: 60000 }
if (version === '5') options.properties = { sessionExpiryInterval: resume ? 3600 : 0 }
if (ca) options.ca = fs.readFileSync(ca)
if (scenario === 'will') options.will = { topic, payload: 'gone', qos, retain: false }
const client = mqtt.connect(url, options)
client.on('error', fail)
client.on('message', async (_topic, payload, packet) => {
  if (resume) await told // what was missed may come before the event of the connection
  shown = true
  console.log(`message ${packet.qos} ${Number(packet.retain)} ${payload}`)
  client.end()
})
client.on('connect', async (connack) => {
  const end = () => client.end(false, {}, () => process.exit(0))
  client.on('close', () => process.exit(0))
  if (scenario === 'will') {
    console.log('ready')
  } else if (resume && !connack.sessionPresent) {
    await client.subscribeAsync(topic, { qos })
    console.log('ready')
    shown = true
    end()
  } else if (resume) {
    console.log('present')
    present()
  } else if (scenario === 'retained') {
    await client.publishAsync(topic, 'kept', { qos, retain: true })
    await client.subscribeAsync(topic, { qos })
  } else {
    await client.subscribeAsync(topic, { qos })
    await client.publishAsync(topic, 'hello', { qos })
  }
})
