// Eclipse paho for Go: its client of 3.1.1 and that of 5; the command line is that of every driver, see test_interop.py.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
)

const patience = 60 * time.Second // on a busy machine

// What both clients do.
type client interface {
	connect(resume bool, will string, qos byte) bool
	subscribe(topic string, qos byte)
	publish(topic, payload string, qos byte, retain bool)
	disconnect()
}

var messages = make(chan string, 10)

func arrived(qos byte, retained bool, payload []byte) {
	retain := 0
	if retained {
		retain = 1
	}
	messages <- fmt.Sprintf("message %d %d %s", qos, retain, payload)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func show() {
	select {
	case line := <-messages:
		fmt.Println(line)
	case <-time.After(patience):
		check(fmt.Errorf("no message for %s", patience))
	}
}

func trust(ca string) *tls.Config {
	if ca == "" {
		return nil
	}
	text, err := os.ReadFile(ca)
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &tls.Config{RootCAs: pool}
}

func main() {
	scenario, version, address, ca, id, topic := os.Args[1], os.Args[2], os.Args[4], os.Args[5], os.Args[6], os.Args[7]
	number, err := strconv.Atoi(os.Args[3])
	check(err)
	qos, resume, will := byte(number), scenario == "resume", ""
	if scenario == "will" {
		will = topic
	}
	var c client
	if version == "5" {
		c = &five{address: address, ca: ca, id: id}
	} else {
		c = &three{address: address, ca: ca, id: id}
	}
	present := c.connect(resume, will, qos)
	switch {
	case scenario == "will":
		fmt.Println("ready")
		select {}
	case resume && !present:
		c.subscribe(topic, qos)
		fmt.Println("ready")
	case resume:
		fmt.Println("present")
		show()
	case scenario == "retained":
		c.publish(topic, "kept", qos, true)
		c.subscribe(topic, qos)
		show()
	default:
		c.subscribe(topic, qos)
		c.publish(topic, "hello", qos, false)
		show()
	}
	c.disconnect()
}

type three struct {
	address, ca, id string
	client          mqtt.Client
}

func wait(token mqtt.Token) {
	if !token.WaitTimeout(patience) {
		check(fmt.Errorf("no answer for %s", patience))
	}
	check(token.Error())
}

func (c *three) connect(resume bool, will string, qos byte) bool {
	options := mqtt.NewClientOptions().AddBroker(c.address).SetClientID(c.id).SetCleanSession(!resume)
	options.SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience)
	if config := trust(c.ca); config != nil {
		options.SetTLSConfig(config)
	}
	if will != "" {
		options.SetWill(will, "gone", qos, false)
	}
	options.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { arrived(m.Qos(), m.Retained(), m.Payload()) })
	c.client = mqtt.NewClient(options)
	token := c.client.Connect()
	wait(token)
	return token.(*mqtt.ConnectToken).SessionPresent()
}

func (c *three) subscribe(topic string, qos byte) { wait(c.client.Subscribe(topic, qos, nil)) }

func (c *three) publish(topic, payload string, qos byte, retain bool) {
	wait(c.client.Publish(topic, qos, retain, payload))
}

func (c *three) disconnect() { c.client.Disconnect(1000) }

type five struct {
	address, ca, id string
	client          *paho.Client
}

// The socket is the caller's affair here.
func (c *five) dial() net.Conn {
	parsed, err := url.Parse(c.address)
	check(err)
	if strings.HasPrefix(parsed.Scheme, "ws") {
		conn, err := mqtt.NewWebsocket(c.address, trust(c.ca), patience, http.Header{}, &mqtt.WebsocketOptions{})
		check(err)
		return conn
	}
	if config := trust(c.ca); config != nil {
		conn, err := tls.Dial("tcp", parsed.Host, config)
		check(err)
		return conn
	}
	conn, err := net.Dial("tcp", parsed.Host)
	check(err)
	return conn
}

func within() context.Context {
	// The process ends long before this could leak.
	ctx, _ := context.WithTimeout(context.Background(), patience) //nolint:govet
	return ctx
}

func (c *five) connect(resume bool, will string, qos byte) bool {
	c.client = paho.NewClient(paho.ClientConfig{
		// It writes a packet piece by piece and PINGREQ from elsewhere: over TLS and WebSocket only a lock keeps them apart.
		Conn: packets.NewThreadSafeConn(c.dial()),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			arrived(p.Packet.QoS, p.Packet.Retain, p.Packet.Payload)
			return true, nil
		}},
	})
	expiry := uint32(0)
	if resume {
		expiry = 3600
	}
	packet := &paho.Connect{ClientID: c.id, CleanStart: !resume, KeepAlive: 60}
	packet.Properties = &paho.ConnectProperties{SessionExpiryInterval: &expiry}
	if will != "" {
		packet.WillMessage = &paho.WillMessage{Topic: will, Payload: []byte("gone"), QoS: qos}
	}
	connack, err := c.client.Connect(within(), packet)
	check(err)
	return connack.SessionPresent
}

func (c *five) subscribe(topic string, qos byte) {
	_, err := c.client.Subscribe(within(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: qos}}})
	check(err)
}

func (c *five) publish(topic, payload string, qos byte, retain bool) {
	_, err := c.client.Publish(within(), &paho.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, Retain: retain})
	check(err)
}

func (c *five) disconnect() { check(c.client.Disconnect(&paho.Disconnect{ReasonCode: 0})) }
